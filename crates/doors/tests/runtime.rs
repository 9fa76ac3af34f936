//! The runtime of a data thread: tasks, time, wake-ups, packet devices.
#![allow(missing_docs, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sublet_doors::local::{Semaphore, Signal};
use sublet_doors::real::{Device, RealDoors, run};
use sublet_doors::{Buffer, Chunk, Clock, Doors, Rng};

#[test]
fn wake_ups_from_other_threads_arrive_in_main_and_in_tasks() {
    run(async |doors| {
        let (send, receive) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            send.send(5).unwrap();
        });
        assert_eq!(doors.timeout(Duration::from_secs(5), receive).await.unwrap(), Ok(5));

        let (send, mut receive) = mpsc::unbounded();
        let (done, finished) = oneshot::channel();
        doors.spawn(async move {
            let mut sum = 0_u64;
            while let Some(number) = receive.next().await {
                sum += number;
            }
            done.send(sum).unwrap();
        });
        for thread in 0..4 {
            let send = send.clone();
            std::thread::spawn(move || {
                for number in 0..1000_u64 {
                    send.unbounded_send(thread * 1000 + number).unwrap();
                    if number % 100 == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        drop(send);
        let sum = doors.timeout(Duration::from_secs(10), finished).await.unwrap().unwrap();
        assert_eq!(sum, (0..4000_u64).sum::<u64>());
    })
    .unwrap();
}

#[test]
fn an_idle_runtime_does_not_spin() {
    run(async |doors| {
        let (_kept, pending) = oneshot::channel::<()>();
        doors.spawn(async move { pending.await.unwrap_or(()) });
        // User and system time of this thread in ticks of 10 ms: fields 14 and 15, counted from behind the name.
        let used = || {
            let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<i64> =
                text.rsplit(')').next().unwrap().split_whitespace().filter_map(|field| field.parse().ok()).collect();
            Duration::from_millis(10 * (fields[10] + fields[11]) as u64)
        };
        let before = used();
        doors.sleep(Duration::from_millis(500)).await;
        assert!(used() - before < Duration::from_millis(50), "{:?} of 500 ms were used", used() - before);
    })
    .unwrap();
}

#[test]
fn tasks_end_with_the_runtime_and_their_slots_are_used_again() {
    struct Told(Rc<Cell<u32>>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let dropped = Rc::new(Cell::new(0));
    run(async |doors| {
        for _ in 0..1000 {
            let (told, inner) = (Told(Rc::clone(&dropped)), doors.clone());
            doors.spawn(async move {
                let _told = told;
                inner.sleep(Duration::from_millis(1)).await;
            });
        }
        doors.sleep(Duration::from_millis(200)).await;
        assert_eq!(dropped.get(), 1000);
        let (told, inner) = (Told(Rc::clone(&dropped)), doors.clone());
        doors.spawn(async move {
            let _told = told;
            inner.sleep(Duration::from_secs(3600)).await;
        });
    })
    .unwrap();
    assert_eq!(dropped.get(), 1001);
}

#[test]
fn a_panic_of_a_task_ends_the_runtime() {
    let result = std::panic::catch_unwind(|| {
        run(async |doors: RealDoors| {
            doors.spawn(async { panic!("expected by the test") });
            doors.sleep(Duration::from_secs(3600)).await;
        })
    });
    assert_eq!(*result.unwrap_err().downcast::<&str>().unwrap(), "expected by the test");
    run(async |_| ()).unwrap();
}

#[test]
fn a_runtime_inside_a_runtime_is_refused() {
    run(async |_| assert!(run(async |_| ()).is_err())).unwrap();
    run(async |_| drop(RealDoors::new())).unwrap();
}

#[test]
fn time_goes_forward_and_timeouts_come_in_time() {
    run(async |doors| {
        let (started, tick) = (Instant::now(), doors.now());
        assert!(doors.timeout(Duration::from_millis(50), std::future::pending::<()>()).await.is_err());
        assert!(started.elapsed() >= Duration::from_millis(50) && started.elapsed() < Duration::from_millis(500));
        assert!(doors.now().since(tick) >= Duration::from_millis(50));
        assert_eq!(doors.timeout(Duration::MAX, async { 7 }).await, Ok(7));
        assert!(doors.wall_ms() > 1_700_000_000_000);
        assert_ne!(doors.random_u128(), doors.random_u128());
    })
    .unwrap();
}

#[test]
fn a_producer_and_a_consumer_never_lose_each_other() {
    run(async |doors| {
        let (signal, queue) = (Rc::new(Signal::new()), Rc::new(RefCell::new(Vec::new())));
        let bound = Semaphore::new(10);
        let (signal2, queue2, bound2) = (Rc::clone(&signal), Rc::clone(&queue), bound.clone());
        doors.spawn(async move {
            for number in 0..10_000 {
                let permit = bound2.acquire(1 + number % 3).await;
                queue2.borrow_mut().push((number, permit));
                signal2.notify();
            }
        });
        let work = async {
            let mut next = 0;
            while next < 10_000 {
                let seen = signal.version();
                let taken = std::mem::take(&mut *queue.borrow_mut());
                if taken.is_empty() {
                    signal.changed(seen).await;
                }
                assert!(taken.iter().map(|(_, permit)| permit.units()).sum::<u64>() <= 10);
                for (number, _) in taken {
                    assert_eq!(number, next);
                    next += 1;
                }
            }
        };
        doors.timeout(Duration::from_secs(20), work).await.unwrap();
        assert_eq!(bound.free(), 10);
    })
    .unwrap();
}

fn packet_pair() -> (Device, OwnedFd) {
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (Device::new(a).unwrap(), b)
}

#[test]
fn a_device_reads_and_writes_one_packet_per_call() {
    run(async |doors| {
        let (device, other) = packet_pair();
        let parts: Vec<Chunk> = vec![vec![1; 16].into(), vec![2; 100].into(), vec![3; 5].into()];
        device.write(parts).await.unwrap();
        device.write(vec![vec![9; 3].into()]).await.unwrap();
        let mut bytes = [0; 200];
        assert_eq!(rustix::io::read(&other, &mut bytes).unwrap(), 121);
        assert_eq!(bytes[..121], *[vec![1; 16], vec![2; 100], vec![3; 5]].concat());
        assert_eq!(rustix::io::read(&other, &mut bytes).unwrap(), 3);

        // Several reads wait at once; each packet goes to exactly one, and the thread goes on meanwhile.
        let reads = join_all((0..4).map(|_| device.read(Buffer::new(4096))));
        let (reads, ()) = join(reads, async {
            for number in 0..4_u8 {
                doors.sleep(Duration::from_millis(20)).await;
                rustix::io::write(&other, &vec![number; 10 + usize::from(number)]).unwrap();
            }
        })
        .await;
        let mut got: Vec<(usize, u8)> = reads.into_iter().map(|(length, buffer)| (length.unwrap(), buffer[0])).collect();
        got.sort_unstable();
        assert_eq!(got, [(10, 0), (11, 1), (12, 2), (13, 3)]);
        drop(other);
        assert_eq!(device.read(Buffer::new(4096)).await.0.unwrap(), 0);
    })
    .unwrap();
}

#[test]
fn a_dropped_device_read_loses_no_packet_and_a_busy_device_starves_nobody() {
    run(async |doors| {
        let (device, other) = packet_pair();
        assert!(doors.timeout(Duration::from_millis(10), device.read(Buffer::new(64))).await.is_err());
        for number in 0..100_u8 {
            rustix::io::write(&other, &[number]).unwrap();
        }
        let turns = Rc::new(Cell::new(0));
        let turns2 = Rc::clone(&turns);
        doors.spawn(async move { turns2.set(1) });
        for number in 0..100_u8 {
            let (result, buffer) = device.read(Buffer::new(64)).await;
            assert_eq!((result.unwrap(), buffer[0]), (1, number));
        }
        assert_eq!(turns.get(), 1, "the other task ran between the packets");
    })
    .unwrap();
}

#[test]
fn a_device_that_is_not_mounted_says_so() {
    let Ok(fuse) = std::fs::File::options().read(true).write(true).open("/dev/fuse") else { return };
    run(async |_| {
        let device = Device::new(fuse.into()).unwrap();
        let (result, buffer) = device.read(Buffer::new(1 << 20)).await;
        assert!(result.is_err());
        assert_eq!(buffer.len(), 1 << 20);
    })
    .unwrap();
}

#[test]
fn fuse_packets_come_and_go_through_a_device() {
    use std::os::fd::AsRawFd;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, for /dev/fuse");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("fuse", folder.path(), "fuse", rustix::mount::MountFlags::NOSUID, &*options).unwrap();
    let mounted = folder.path().to_owned();
    let result = std::panic::catch_unwind(|| {
        run(async |doors| {
            let device = Device::new(fuse.into()).unwrap();
            let (length, init) = device.read(Buffer::new((1 << 20) + 4096)).await;
            assert!(length.unwrap() >= 56);
            assert_eq!(init[4..8], 26_u32.to_le_bytes(), "FUSE_INIT comes first");
            // fuse_out_header with the request's unique number, and fuse_init_out of version 7.31: two parts, one packet.
            let mut body = vec![0; 64];
            body[..4].copy_from_slice(&7_u32.to_le_bytes());
            body[4..8].copy_from_slice(&31_u32.to_le_bytes());
            body[20..24].copy_from_slice(&(1_u32 << 20).to_le_bytes());
            let header = [&80_u32.to_le_bytes()[..], &[0; 4], &init[8..16]].concat();
            device.write(vec![header.into(), body.into()]).await.unwrap();
            // A second thread asks for the attributes of the root; the answer is an error, told as one packet.
            let asked = mounted.clone();
            let asking = std::thread::spawn(move || std::fs::metadata(asked));
            let (length, request) = device.read(Buffer::new((1 << 20) + 4096)).await;
            assert!(length.unwrap() >= 40);
            let answer = [&16_u32.to_le_bytes()[..], &(-5_i32).to_le_bytes(), &request[8..16]].concat();
            device.write(vec![answer.into()]).await.unwrap();
            assert_eq!(asking.join().unwrap().unwrap_err().raw_os_error(), Some(5));
            let (end, ()) = join(device.read(Buffer::new((1 << 20) + 4096)), async {
                doors.sleep(Duration::from_millis(50)).await;
                rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
            })
            .await;
            assert_eq!(end.0.unwrap_err().raw_os_error(), Some(19), "ENODEV after the unmount");
        })
        .unwrap();
    });
    if result.is_err() {
        let _ = rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH);
    }
    result.unwrap();
}
