//! What people type, and what stands for it in JSON: sizes, names, addresses, ids, usage ways, seals.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sublet_types::{
    Address, AreaId, ByteSize, LeaseSecret, ManagerId, Name, OpenId, PoolId, SealText, ServerId, SliceId, TaskId, VolumeId, Way,
};

/// What is read from a text is printed as one that reads the same, in JSON as well. The message of an error stays short, whatever
/// was typed.
fn again<T>(text: &str) -> Option<T>
where
    T: FromStr + Display + Serialize + DeserializeOwned + PartialEq + Debug,
    T::Err: Display,
{
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(printed.parse::<T>().ok().as_ref(), Some(&value), "{printed} is printed for {text:?}");
            in_json(&value);
            Some(value)
        }
        Err(error) => {
            is_short(&error);
            None
        }
    }
}

fn in_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let json = serde_json::to_string(value).unwrap_or_default();
    assert_eq!(serde_json::from_str::<T>(&json).ok().as_ref(), Some(value), "{json}");
}

fn is_short(error: &impl Display) {
    let text = error.to_string();
    // 80 characters of what was typed, each as long as \u{10ffff}.
    assert!(text.len() < 1200 && !text.contains(char::is_control), "{text:?}");
}

/// Sizes are printed with two digits behind the point.
fn size(text: &str) -> bool {
    let read = text.parse::<ByteSize>();
    match read {
        Err(error) => {
            is_short(&error);
            false
        }
        Ok(size) => {
            let printed = size.to_string();
            match printed.parse::<ByteSize>() {
                Ok(again) => assert!(again.0.abs_diff(size.0) <= size.0 / 100, "{printed} is printed for {text:?}"),
                // Rounded up, the largest ones are more than there can be.
                Err(_) => assert!(size.0 > u64::MAX - (u64::MAX >> 10), "{printed} is printed for {text:?}"),
            }
            in_json(&size);
            true
        }
    }
}

fn address(text: &str) -> bool {
    let with_port = Address::parse_with_port(text, 7471);
    if let Ok(address) = &with_port {
        assert!(!address.host().is_empty() && address.host().len() <= 255);
        let again = Address::parse_with_port(&address.to_string(), 1);
        assert_eq!(again.as_ref(), Ok(address), "printed for {text:?}");
        in_json(address);
    }
    let whole = again::<Address>(text);
    assert!(whole.is_none() || with_port.as_ref().ok() == whole.as_ref());
    with_port.is_ok()
}

fn name(text: &str) -> bool {
    let Some(name) = again::<Name>(text) else { return false };
    assert_eq!(name.as_str(), text);
    assert!((1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    assert!(!text.starts_with('-'));
    true
}

/// Any text, for all of them.
pub fn texts(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let ids = [
        again::<PoolId>(text).map(PoolId::to_u128),
        again::<ManagerId>(text).map(ManagerId::to_u128),
        again::<ServerId>(text).map(ServerId::to_u128),
        again::<AreaId>(text).map(AreaId::to_u128),
        again::<VolumeId>(text).map(VolumeId::to_u128),
        again::<SliceId>(text).map(SliceId::to_u128),
        again::<TaskId>(text).map(TaskId::to_u128),
        again::<OpenId>(text).map(OpenId::to_u128),
    ];
    assert!(ids.iter().all(|id| *id == ids[0]));
    let json = serde_json::Value::String(text.to_owned());
    let secret = serde_json::from_value::<LeaseSecret>(json.clone()).map(LeaseSecret::to_u128).ok();
    assert_eq!(secret, ids[0]);
    let seal = text.parse::<SealText>();
    assert!(seal.as_ref().is_ok_and(|seal| seal.as_str() == text) || seal.is_err());
    assert_eq!(serde_json::from_value::<SealText>(json).ok(), seal.as_ref().ok().cloned());
    let (is_size, is_name, is_address) = (size(text), name(text), address(text));
    ids[0].is_some() || seal.is_ok() || is_size || is_name || is_address || again::<Way>(text).is_some()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let longest = "a".repeat(63);
    let texts = [
        "0",
        "4096",
        "10G",
        "512MiB",
        "1.5T",
        "18446744073709551615",
        "16383P",
        "0.999999999999P",
        "vol-1",
        &longest,
        "127.0.0.1:7471",
        "[2001:db8::7]:7471",
        "::1",
        "storage1.example:80",
        "host",
        "0123456789abcdef0123456789ABCDEF",
        "MIRROR",
        "single",
        "AB+/cd09",
        "AA==",
        "\u{e4}\u{10ffff}",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
