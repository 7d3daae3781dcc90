//! `twinhull provision` against the cloud of the lab.

#[path = "../qemu/src/cloud.rs"]
mod cloud;

use std::io::{Read, Write};
use std::net::TcpStream;

use cloud::{Cloud, Config, Fleet};

fn ask(cloud: &Cloud, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(cloud.address()).unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn register(cloud: &Cloud, key: &str, body: &str) -> (u16, String) {
    let len = body.len();
    ask(
        cloud,
        &format!(
            "POST /device/register HTTP/1.1\nConnection: close\nAuthorization: Bearer {key}\nContent-Type: application/json\nContent-Length: {len}\n\n{body}"
        ),
    )
}

fn fleet() -> Fleet {
    "7:provisioning-key:intel-nuc".parse().unwrap()
}

/// What the real API (open-balena-api v49.0.12) was seen to answer.
#[test]
fn the_cloud_refuses_what_the_real_one_refuses() {
    let cloud = Cloud::start(Config::new("127.0.0.1:0").fleet(fleet())).unwrap();
    let uuid = "0123456789abcdef0123456789abcdef";
    let other = "fedcba9876543210fedcba9876543210";
    let good = format!(r#"{{"application":7,"device_type":"intel-nuc","uuid":"{uuid}","api_key":"k1"}}"#);
    let (status, body) = register(&cloud, "provisioning-key", &good);
    assert_eq!(
        (status, body.as_str()),
        (201, format!(r#"{{"id":1001,"uuid":"{uuid}","api_key":"k1"}}"#).as_str())
    );
    for (key, body, expected) in [
        ("wrong", good.clone(), (401, r#"{"error":"API key required"}"#)),
        ("", good.clone(), (401, r#"{"error":"API key required"}"#)),
        ("k1", good.clone(), (401, "")),
        ("provisioning-key", good.clone(), (409, r#""uuid" must be unique."#)),
        ("provisioning-key", good.replace(uuid, other), (409, r#""\"key\" must be unique.""#)),
        ("provisioning-key", good.replace("7", "8"), (401, "")),
        ("provisioning-key", good.replace("\"intel-nuc\"", "5"), (400, "")),
        ("provisioning-key", good.replace("intel-nuc", "toaster"), (404, "Unknown device type")),
        (
            "provisioning-key",
            good.replace(uuid, "ABC"),
            (400, "UUID must be a 32 or 62 character long lower case hex string."),
        ),
        (
            "provisioning-key",
            good.replace("\"api_key\":\"k1\"", "\"os_version\":\"Debian 12\"").replace(uuid, other),
            (403, "Invalid os_version"),
        ),
    ] {
        let (status, text) = register(&cloud, key, &body);
        assert_eq!((status, text.as_str()), expected, "{key} {body}");
    }
    assert_eq!(cloud.devices().len(), 1);
    assert!(!format!("{:?}", cloud.log()).contains("provisioning-key"));
}
