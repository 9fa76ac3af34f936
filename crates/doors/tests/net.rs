//! The real net door, over loopback and Unix sockets.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use futures_util::future::join;
use sublet_doors::real::{RealConn, RealDoors, RealReader, RealWriter, run};
use sublet_doors::{Buffer, Chunk, Clock, Conn, ConnReader, ConnWriter, Doors, Endpoint, Listener, Net};
use sublet_types::Address;

const LIMIT: Duration = Duration::from_secs(5);

async fn pair(doors: &RealDoors) -> (RealConn, RealConn) {
    let listener = doors.listen(&Endpoint::Tcp(Address::new("127.0.0.1", 0))).await.unwrap();
    let to = Endpoint::Tcp(listener.local_address().unwrap());
    let (accepted, connected) = join(listener.accept(), doors.connect(&to, LIMIT)).await;
    (accepted.unwrap(), connected.unwrap())
}

async fn echo((mut reader, mut writer): (RealReader, RealWriter)) {
    loop {
        let (result, mut buffer) = reader.read(Buffer::new(100_000), 0..100_000).await;
        match result.unwrap() {
            0 => return,
            n => buffer.truncate(n),
        }
        writer.write_all(vec![buffer.freeze()]).await.unwrap();
    }
}

#[test]
fn large_vectored_writes_come_back_whole_while_both_halves_work() {
    run(async |doors| {
        let (server, client) = pair(&doors).await;
        assert!(client.peer().starts_with("127.0.0.1:") && server.peer().starts_with("127.0.0.1:"));
        doors.spawn(echo(server.split()));
        let (mut reader, mut writer) = client.split();
        // 3000 chunks of odd sizes: more than one call takes, and more than the sockets' buffers hold.
        let chunks: Vec<Chunk> = (0..3000_usize).map(|n| vec![n as u8; n * 7 % 9000].into()).collect();
        let expected: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.to_vec()).collect();
        let length = expected.len();
        let (sent, (received, buffer)) = join(writer.write_all(chunks), reader.read_exact(Buffer::new(length), 0..length)).await;
        sent.unwrap();
        received.unwrap();
        assert!(*buffer == *expected);
    })
    .unwrap();
}

#[test]
fn shutdown_ends_a_pending_read_of_the_other_half_and_the_peer() {
    run(async |doors| {
        let (server, client) = pair(&doors).await;
        let (mut reader, writer) = client.split();
        let (mut far, _far_writer) = server.split();
        let ((result, _), ()) = join(reader.read(Buffer::new(64), 0..64), async {
            doors.sleep(Duration::from_millis(50)).await;
            writer.shutdown();
        })
        .await;
        assert_eq!(result.unwrap(), 0);
        assert_eq!(far.read(Buffer::new(64), 0..64).await.0.unwrap(), 0);
        let (result, _) = far.read_exact(Buffer::new(64), 0..64).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    })
    .unwrap();
}

#[test]
fn dropping_both_halves_closes_although_a_dropped_read_is_in_the_kernel() {
    run(async |doors| {
        let (server, client) = pair(&doors).await;
        let (mut reader, writer) = client.split();
        let (mut far, _far_writer) = server.split();
        doors.timeout(Duration::from_millis(20), reader.read(Buffer::new(64), 0..64)).await.unwrap_err();
        drop(writer);
        assert!(doors.timeout(Duration::from_millis(50), far.read(Buffer::new(64), 0..64)).await.is_err());
        drop(reader);
        let (result, _) = doors.timeout(LIMIT, far.read(Buffer::new(64), 0..64)).await.unwrap();
        assert_eq!(result.unwrap(), 0);
    })
    .unwrap();
}

#[test]
fn a_timed_out_read_loses_no_bytes() {
    run(async |doors| {
        let (server, client) = pair(&doors).await;
        let (mut reader, _writer) = client.split();
        let (_far, mut far_writer) = server.split();
        for round in 0..50_u8 {
            // Sometimes the bytes come before the limit, sometimes after, sometimes with it.
            let limit = Duration::from_micros(u64::from(round) * 10);
            let early = doors.timeout(limit, reader.read(Buffer::new(64), 10..64));
            let data: Vec<u8> = (0..40).map(|n| n ^ round).collect();
            let (early, sent) = join(early, far_writer.write_all(vec![data.clone().into()])).await;
            sent.unwrap();
            let mut got = Vec::new();
            if let Ok((result, buffer)) = early {
                got.extend_from_slice(&buffer[10..10 + result.unwrap()]);
            }
            while got.len() < data.len() {
                // Smaller than what came for the dropped read.
                let (result, buffer) = doors.timeout(LIMIT, reader.read(Buffer::new(16), 3..16)).await.unwrap();
                got.extend_from_slice(&buffer[3..3 + result.unwrap()]);
            }
            assert_eq!(got, data);
        }
    })
    .unwrap();
}

#[test]
fn bytes_that_came_for_a_dropped_read_are_kept() {
    run(async |doors| {
        let listener = doors.listen(&Endpoint::Tcp(Address::new("127.0.0.1", 0))).await.unwrap();
        let at = listener.local_address().unwrap();
        let mut peer = std::net::TcpStream::connect((at.host(), at.port())).unwrap();
        let (mut reader, _writer) = listener.accept().await.unwrap().split();
        {
            let mut early = std::pin::pin!(reader.read(Buffer::new(64), 0..64));
            // The receive is in the kernel now ...
            assert!(doors.timeout(Duration::from_millis(20), early.as_mut()).await.is_err());
            // ... and gets these bytes, but nobody looks at its future any more,
            std::io::Write::write_all(&mut peer, b"kept").unwrap();
            doors.sleep(Duration::from_millis(20)).await;
            // which is dropped here.
        }
        let (result, buffer) = doors.timeout(LIMIT, reader.read_exact(Buffer::new(4), 0..4)).await.unwrap();
        result.unwrap();
        assert_eq!(&*buffer, b"kept");
    })
    .unwrap();
}

#[test]
fn very_many_connections_dropped_at_once_are_all_closed() {
    // More than the ring takes cancellations at once.
    const COUNT: u64 = 1500;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let needed = 2 * COUNT + 200;
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(needed);
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }
    run(async |doors| {
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for _ in 0..COUNT {
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            near.push(RealConn::from_fd(a.into()).unwrap().split());
            far.push(RealConn::from_fd(b.into()).unwrap().split());
        }
        let reads = near.iter_mut().map(|(reader, _)| reader.read(Buffer::new(1), 0..1));
        let all = futures_util::future::join_all(reads);
        assert!(doors.timeout(Duration::from_millis(100), all).await.is_err());
        drop(near);
        let ends = far.iter_mut().map(|(reader, _)| reader.read(Buffer::new(1), 0..1));
        for (result, _) in doors.timeout(LIMIT, futures_util::future::join_all(ends)).await.unwrap() {
            assert_eq!(result.unwrap(), 0);
        }
    })
    .unwrap();
}

#[test]
fn writing_to_a_closed_connection_is_an_error_not_a_signal() {
    run(async |doors| {
        let (server, client) = pair(&doors).await;
        drop(server);
        let (_reader, mut writer) = client.split();
        for _ in 0..100 {
            if writer.write_all(vec![vec![1; 1000].into()]).await.is_err() {
                return;
            }
            doors.sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody is there, and all was sent");
    })
    .unwrap();
}

#[test]
fn names_are_tried_at_every_address() {
    run(async |doors| {
        // "localhost" is ::1 and 127.0.0.1 on most machines; only one of them listens.
        let listener = doors.listen(&Endpoint::Tcp(Address::new("127.0.0.1", 0))).await.unwrap();
        let port = listener.local_address().unwrap().port();
        let to = Endpoint::Tcp(Address::new("localhost", port));
        let (accepted, connected) = join(listener.accept(), doors.connect(&to, LIMIT)).await;
        accepted.unwrap();
        connected.unwrap();
        drop(listener);
        doors.sleep(Duration::from_millis(20)).await;
        let error = doors.connect(&to, LIMIT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&format!("localhost:{port}")), "{error}");
        let nowhere = Endpoint::Tcp(Address::new("no-such-host.invalid", 1));
        assert!(doors.connect(&nowhere, LIMIT).await.unwrap_err().to_string().contains("no-such-host.invalid"));
    })
    .unwrap();
}

#[test]
fn connecting_to_silence_ends_at_the_limit() {
    run(async |doors| {
        // A full backlog drops the SYN: nobody answers.
        let silent = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&silent, &"127.0.0.1:0".parse::<std::net::SocketAddrV4>().unwrap()).unwrap();
        rustix::net::listen(&silent, 0).unwrap();
        let at = std::net::SocketAddr::try_from(rustix::net::getsockname(&silent).unwrap()).unwrap();
        let to = Endpoint::Tcp(Address::new("127.0.0.1", at.port()));
        let limit = Duration::from_millis(200);
        let mut kept = Vec::new();
        for _ in 0..10 {
            let started = std::time::Instant::now();
            match doors.connect(&to, limit).await {
                Ok(conn) => kept.push(conn),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                    assert!(started.elapsed() >= limit && started.elapsed() < 5 * limit);
                    return;
                }
            }
        }
        panic!("a backlog of 0 took {} connections", kept.len());
    })
    .unwrap();
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    run(async |doors| {
        let listener = doors.listen(&Endpoint::Tcp(Address::new("127.0.0.1", 0))).await.unwrap();
        let to = Endpoint::Tcp(listener.local_address().unwrap());
        for micros in 0..50 {
            let early = doors.timeout(Duration::from_micros(micros * 10), listener.accept());
            let (early, connected) = join(early, doors.connect(&to, LIMIT)).await;
            let accepted = match early {
                Ok(accepted) => accepted.unwrap(),
                Err(_) => doors.timeout(LIMIT, listener.accept()).await.unwrap().unwrap(),
            };
            let (_reader, mut writer) = accepted.split();
            writer.write_all(vec![vec![7].into()]).await.unwrap();
            let (mut reader, _writer) = connected.unwrap().split();
            assert_eq!(reader.read(Buffer::new(1), 0..1).await.0.unwrap(), 1);
        }
    })
    .unwrap();
}

#[test]
fn ipv4_and_ipv6_wildcards_are_listened_on_together() {
    run(async |doors| {
        let four = doors.listen(&Endpoint::Tcp(Address::new("0.0.0.0", 0))).await.unwrap();
        let port = four.local_address().unwrap().port();
        match doors.listen(&Endpoint::Tcp(Address::new("::", port))).await {
            Ok(six) => assert_eq!(six.local_address().unwrap().port(), port),
            // A machine without IPv6.
            Err(error) => assert_ne!(error.kind(), ErrorKind::AddrInUse, "{error}"),
        }
        let error = doors.listen(&Endpoint::Tcp(Address::new("0.0.0.0", port))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    })
    .unwrap();
}

#[test]
fn unix_sockets_are_private_and_only_dead_ones_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let at = Endpoint::Unix(path.clone());
    run(async |doors| {
        let listener = doors.listen(&at).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listener.local_address(), None);
        let (accepted, connected) = join(listener.accept(), doors.connect(&at, LIMIT)).await;
        assert_eq!(accepted.unwrap().peer(), "");
        let (reader, mut writer) = connected.unwrap().split();
        drop(reader);
        writer.write_all(vec![vec![1; 10].into()]).await.unwrap_err();

        let error = doors.listen(&at).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "a living one is not replaced");
        drop(listener);
        assert!(path.exists());
        let error = doors.connect(&at, LIMIT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let listener = doors.listen(&at).await.unwrap();
        let (accepted, connected) = join(listener.accept(), doors.connect(&at, LIMIT)).await;
        drop((accepted.unwrap(), connected.unwrap()));
    })
    .unwrap();
}

#[test]
fn a_path_with_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    run(async |doors| {
        let error = doors.listen(&Endpoint::Unix(path.clone())).await.unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
    })
    .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
}

#[test]
fn a_connection_can_be_handed_to_another_thread() {
    run(async |doors| {
        let (server, client) = pair(&doors).await;
        let fd = server.into_fd();
        let other = std::thread::spawn(move || run(async |_| echo(RealConn::from_fd(fd).unwrap().split()).await).unwrap());
        let (mut reader, mut writer) = client.split();
        writer.write_all(vec![b"hello".to_vec().into()]).await.unwrap();
        let (result, buffer) = reader.read_exact(Buffer::new(5), 0..5).await;
        result.unwrap();
        assert_eq!(&*buffer, b"hello");
        drop((reader, writer));
        other.join().unwrap();
    })
    .unwrap();
}
