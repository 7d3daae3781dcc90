//! The client against an engine that behaves and misbehaves on the wire.

use std::sync::mpsc::channel;
use std::time::Duration;

use ureq::http::Method;

use super::fake::{CHUNKED, Fake, Reply, answer, chunk, ok};
use super::{Engine, Output, Progress, Wake};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::termination::Termination;
use crate::{Error, Result, Root, config};

/// Generous: only a call that waits for ever must fail.
const LONG: Duration = Duration::from_secs(30);

fn engine(reply: impl FnMut(&str) -> Reply + Send + 'static) -> (Fake, Engine) {
    let fake = Fake::new(reply);
    let engine = Engine::at(&fake.socket).unwrap();
    (fake, engine)
}

#[test]
fn the_lower_version_is_spoken_on_one_connection() {
    let (fake, engine) = engine(|_| ok("[]"));
    assert_eq!((engine.version(), engine.api().to_string().as_str()), ("20.10.24", "1.41"));
    engine.containers().unwrap();
    engine.containers().unwrap();
    assert_eq!(
        fake.seen(),
        ["GET /version", "GET /v1.41/containers/json?all=true", "GET /v1.41/containers/json?all=true"]
    );
    assert_eq!(fake.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn an_engine_that_knows_only_newer_versions_is_spoken_to_in_its_oldest() {
    let fake = Fake::raw(|_| ok(r#"{"ApiVersion":"1.52","MinAPIVersion":"1.44"}"#));
    assert_eq!(Engine::at(&fake.socket).unwrap().api().to_string(), "1.44");
}

#[test]
fn answers_to_version_that_are_of_no_use() {
    for (body, expected) in [
        (r#"{"ApiVersion":"1.30"}"#, "engine API 1.30: at least 1.40 is needed"),
        (r#"{"ApiVersion":"new"}"#, "engine API version \"new\": expected MAJOR.MINOR"),
        ("{}", "engine API version \"\": expected MAJOR.MINOR"),
        (r#"{"ApiVersion":"#, "GET /version: the engine's answer: EOF while parsing"),
    ] {
        let fake = Fake::raw(|_| ok(body));
        let e = Engine::at(&fake.socket).unwrap_err().to_string();
        assert!(e.starts_with("engine at /") && e.contains(expected), "{e}");
    }
}

#[test]
fn an_error_carries_the_engines_message() {
    let conflict = r#"{"message":"Conflict. The name is in use\n"}"#;
    let (_fake, engine) = engine(move |_| Reply::Keep(answer("409 Conflict", conflict)));
    let e = engine.remove("x").unwrap_err();
    assert_eq!(e.to_string(), "DELETE /containers/x: 409 Conflict. The name is in use");
}

#[test]
fn what_is_not_there_is_none() {
    let (_fake, engine) = engine(|_| Reply::Keep(answer("404 Not Found", r#"{"message":"no such"}"#)));
    assert_eq!(engine.container("x").unwrap(), None);
    assert_eq!(engine.image("a/b:1").unwrap(), None);
    engine.remove("x").unwrap();
    engine.stop("x", Duration::from_secs(1)).unwrap();
    assert!(engine.start("x").unwrap_err().to_string().contains("404 no such"));
}

#[test]
fn names_cannot_leave_their_place_in_the_path() {
    let (fake, engine) = engine(|_| ok("{}"));
    engine.image("a/b@sha256:1 ?x#y").unwrap();
    assert_eq!(fake.seen().last().unwrap(), "GET /v1.41/images/a/b@sha256:1%20%3Fx%23y/json");
}

#[test]
fn a_post_without_a_body_says_so() {
    // Seen with dockerd 20.10: 400 for `start` with a chunked body, even an empty one.
    let (fake, engine) = engine(|_| Reply::Keep(b"HTTP/1.1 204 No Content\r\n\r\n".into()));
    engine.start("x").unwrap();
    engine.restart("x", Duration::from_secs(3)).unwrap();
    assert_eq!(fake.seen()[1..], ["POST /v1.41/containers/x/start", "POST /v1.41/containers/x/restart?t=3"]);
}

#[test]
fn a_hung_engine_costs_the_deadline_and_no_more() {
    let whole = answer("200 OK", "{}");
    let mut replies = vec![Reply::Hang(whole[..whole.len() - 1].into()), Reply::Hang(Vec::new())];
    let (_fake, engine) = engine(move |_| replies.pop().unwrap());
    for _ in 0..2 {
        let start = BootClock.since_boot();
        let deadline = Duration::from_millis(200);
        let e = engine.change(Method::POST, "/x?y", None, &[200], deadline).err().unwrap();
        let took = BootClock.since_boot() - start;
        assert!(took >= deadline && took < LONG, "{took:?}");
        assert_eq!(e.to_string(), "POST /x: no answer within 0.2 s");
    }
}

#[test]
fn a_truncated_answer_is_an_error() {
    let whole = answer("200 OK", r#"{"Id":"abc"}"#);
    for cut in 1..whole.len() {
        let part = whole[..cut].to_vec();
        let (_fake, engine) = engine(move |_| Reply::Close(part.clone()));
        assert!(engine.container("x").is_err(), "cut at {cut}");
    }
    let (_fake, engine) = engine(move |_| Reply::Close(whole.clone()));
    assert_eq!(engine.container("x").unwrap().unwrap().id, "abc");
}

fn load(reply: String) -> Result<Vec<String>> {
    let (_fake, engine) = engine(move |_| Reply::Close(reply.clone().into()));
    engine.load(&b"archive"[..], &mut |_| Ok(()))
}

/// As dockerd 20.10.24 answers `docker load`.
fn lines(last: &str) -> String {
    chunk(
        "{\"status\":\"Loading layer\",\"progressDetail\":{\"current\":32768,\"total\":677376},\"id\":\"8f54\"}\r\n",
    ) + &chunk(last)
}

#[test]
fn a_load_tells_what_it_loaded_and_sends_every_byte() {
    let reply = CHUNKED.to_owned() + &lines("{\"stream\":\"Loaded image: a/b:1\\n\"}\n") + &chunk("");
    let (fake, engine) = engine(move |_| Reply::Close(reply.clone().into()));
    let mut said = Vec::new();
    let names = engine.load(&b"archive"[..], &mut |p| {
        said.push(p.clone());
        Ok(())
    });
    assert_eq!(names.unwrap(), ["a/b:1"]);
    assert_eq!(said.first(), Some(&Progress::Sent(7)));
    assert_eq!(said.last(), Some(&Progress::Says("Loaded image: a/b:1".into())));
    assert_eq!(fake.seen().last().unwrap(), "POST /v1.41/images/load?quiet=0 archive (in chunks)");
}

#[test]
fn an_error_inside_of_a_good_answer_is_found() {
    let error = r#"{"errorDetail":{"message":"no space left on device"},"error":"no space left on device"}"#;
    let e = load(CHUNKED.to_owned() + &lines(error) + &chunk("")).unwrap_err();
    assert_eq!(e.to_string(), "POST /images/load: no space left on device");
}

#[test]
fn a_load_that_breaks_off_is_an_error() {
    let whole = CHUNKED.to_owned() + &lines("{\"stream\":\"Loaded image: a/b:1\"}\n") + &chunk("");
    for cut in 1..whole.len() - 2 {
        assert!(load(whole[..cut].to_owned()).is_err(), "cut at {cut}");
    }
    assert_eq!(load(whole).unwrap(), ["a/b:1"]);
}

#[test]
fn a_load_ends_when_its_watcher_says_so() {
    let (_fake, engine) = engine(|_| ok("{}"));
    let e = engine.load(&b"archive"[..], &mut |_| Err(Error::refused("asked to end"))).unwrap_err();
    assert_eq!((e.kind(), e.to_string().as_str()), (crate::Kind::Refused, "POST /images/load: asked to end"));
}

fn pull(reply: String) -> (Result<()>, Vec<Progress>, Vec<String>) {
    let (fake, engine) = engine(move |_| Reply::Close(reply.clone().into()));
    let mut said = Vec::new();
    let done = engine.pull("lab/app", Some("bG9naW4="), &mut |p| {
        said.push(p.clone());
        Ok(())
    });
    (done, said, fake.seen())
}

/// As dockerd 20.10.24 answers `docker pull`, cut down to two layers.
const PULL: [&str; 8] = [
    r#"{"status":"Pulling from lab/app","id":"latest"}"#,
    r#"{"status":"Pulling fs layer","progressDetail":{},"id":"aa"}"#,
    r#"{"status":"Downloading","progressDetail":{"current":100,"total":400},"progress":"[=> ]","id":"aa"}"#,
    r#"{"status":"Downloading","progressDetail":{"current":50,"total":50},"id":"bb"}"#,
    r#"{"status":"Download complete","progressDetail":{},"id":"aa"}"#,
    r#"{"status":"Extracting","progressDetail":{"current":7,"total":400},"id":"aa"}"#,
    r#"{"status":"Digest: sha256:0123"}"#,
    r#"{"status":"Status: Downloaded newer image for lab/app:latest"}"#,
];

#[test]
fn a_pull_asks_for_one_tag_with_the_login_and_adds_up_its_layers() {
    let body: String = PULL.map(|line| chunk(&format!("{line}\r\n"))).concat();
    let (done, said, seen) = pull(CHUNKED.to_owned() + &body + &chunk(""));
    done.unwrap();
    assert_eq!(seen.last().unwrap(), "POST /v1.41/images/create?fromImage=lab/app:latest login bG9naW4=");
    let sums: Vec<_> = said
        .iter()
        .filter_map(|p| if let Progress::Pulled { done, total } = p { Some((*done, *total)) } else { None })
        .collect();
    assert_eq!(sums, [(100, 400), (150, 450), (450, 450)]);
}

#[test]
fn a_pull_that_fails_or_breaks_off_is_an_error() {
    let full = r#"{"errorDetail":{"message":"x"},"error":"write /var/lib: no space left on device"}"#;
    let lines = |last: &str| CHUNKED.to_owned() + &chunk(&format!("{}\n{last}\n", PULL[0])) + &chunk("");
    let e = pull(lines(full)).0.unwrap_err();
    assert_eq!(e.to_string(), "pull lab/app: write /var/lib: no space left on device");
    let whole = lines(PULL[7]);
    for cut in 1..whole.len() - 2 {
        assert!(pull(whole[..cut].to_owned()).0.is_err(), "cut at {cut}");
    }
    let denied = answer("404 Not Found", r#"{"message":"pull access denied for lab/app"}"#);
    let e = pull(String::from_utf8(denied).unwrap()).0.unwrap_err().to_string();
    assert_eq!(e, "pull lab/app: 404 pull access denied for lab/app");
}

#[test]
fn an_image_that_is_used_stays() {
    for (status, gone) in [("200 OK", true), ("404 Not Found", true), ("409 Conflict", false)] {
        let (fake, engine) = engine(move |_| Reply::Keep(answer(status, "[]")));
        assert_eq!(engine.remove_image("a/b:1").unwrap(), gone);
        assert_eq!(fake.seen().last().unwrap(), "DELETE /v1.41/images/a/b:1");
    }
}

#[test]
fn logs_are_followed_to_their_end() {
    let pieces = ["\x01\0\0\0\0\0\0\x06hel", "lo\n\x02\0\0\0\0\0\0\x02e\n"];
    let reply = CHUNKED.to_owned() + &pieces.map(chunk).concat() + &chunk("");
    let (fake, engine) = engine(move |_| Reply::Close(reply.clone().into()));
    let mut text = String::new();
    let termination = Termination::catch().unwrap();
    engine
        .logs("x", Some(7), true, &termination, &mut |output, piece| {
            let name = if output == Output::Err { "!" } else { "" };
            text.push_str(&format!("{name}{}", String::from_utf8_lossy(piece)));
        })
        .unwrap();
    assert_eq!(text, "hello\n!e\n");
    let expected = "GET /v1.41/containers/x/logs?stdout=true&stderr=true&follow=true&tail=7";
    assert_eq!(fake.seen().last().unwrap(), expected);
}

#[test]
fn events_come_between_ticks_even_in_pieces() {
    let (go, going) = channel();
    let pieces = [
        CHUNKED.to_owned() + &chunk("{\"Action\":\"die\"}\n{\"Action\":"),
        chunk("\"health_status: healthy\"}\n"),
        chunk(""),
    ];
    let mut going = Some(going);
    let (fake, engine) = engine(move |_| {
        Reply::OnDemand(pieces.iter().map(|p| p.clone().into_bytes()).collect(), going.take().unwrap())
    });
    go.send(()).unwrap();
    let mut events = engine.events("balena_supervisor", &Termination::catch().unwrap()).unwrap();
    assert_eq!(events.next(LONG).unwrap(), Wake::Event("die".into()));
    for _ in 0..3 {
        assert_eq!(events.next(Duration::from_millis(20)).unwrap(), Wake::Tick);
    }
    go.send(()).unwrap();
    assert_eq!(events.next(LONG).unwrap(), Wake::Event("health_status: healthy".into()));
    go.send(()).unwrap();
    assert_eq!(events.next(LONG).unwrap(), Wake::End);
    let filters = "%22container%22%3A[%22balena_supervisor%22]".replace('[', "%5B").replace(']', "%5D");
    assert!(fake.seen()[1].contains(&filters.replace("%3A", ":")), "the container is filtered for");
}

#[test]
fn an_engine_that_dies_under_the_events_is_an_error() {
    let (_fake, engine) =
        engine(|_| Reply::Close((CHUNKED.to_owned() + &chunk("{\"Action\":\"die\"}\n")).into()));
    let mut events = engine.events("x", &Termination::catch().unwrap()).unwrap();
    assert_eq!(events.next(LONG).unwrap(), Wake::Event("die".into()));
    let e = events.next(LONG).unwrap_err().to_string();
    assert!(e.starts_with("GET /events: the engine's answer broke off"), "{e}");
}

#[test]
fn the_first_socket_that_exists_is_used() {
    let fake = Fake::new(|_| ok("[]"));
    let root = Root::new(fake.socket.parent().unwrap());
    let sockets = |names: &[&str]| config::Engine {
        sockets: names.iter().map(Into::into).collect(),
        ..config::Engine::default()
    };
    let engine = Engine::connect(&sockets(&["/none.sock", "/engine.sock"]), &root).unwrap();
    assert_eq!(engine.socket(), fake.socket);
    let e = Engine::connect(&sockets(&["/none.sock", "/nor.sock"]), &root).unwrap_err().to_string();
    assert!(e.contains("/none.sock, ") && e.contains("/nor.sock;"), "{e}");
}

#[test]
fn what_is_no_answer_at_all_is_an_error() {
    let huge = |head: &str| format!("{head}{}", "x".repeat(9 << 20)).into_bytes();
    for bytes in [
        b"".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(),
        b"\0\xff\xfe\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n{}".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n{}".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"Id\":3".to_vec(),
        huge("HTTP/1.1 200 OK\r\nX: "),
        // Longer than anything that an engine has to say.
        huge("HTTP/1.1 200 OK\r\n\r\n{\"Id\":\""),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let start = BootClock.since_boot();
        // The connection may end before all is written.
        let (_fake, engine) = engine(move |_| Reply::Close(bytes.clone()));
        assert!(engine.container("x").is_err(), "{shown:?}");
        assert!(BootClock.since_boot() - start < LONG, "{shown:?}");
    }
}

#[test]
fn an_answer_that_drips_costs_the_deadline_and_no_more() {
    let (go, going) = channel();
    let mut going = Some(going);
    let (_fake, engine) = engine(move |_| {
        let pieces = answer("200 OK", &"x".repeat(100_000)).into_iter().map(|byte| vec![byte]).collect();
        Reply::OnDemand(pieces, going.take().unwrap())
    });
    std::thread::spawn(move || {
        while go.send(()).is_ok() {
            BootClock.sleep(Duration::from_millis(5));
        }
    });
    let start = BootClock.since_boot();
    let deadline = Duration::from_millis(300);
    let e = engine.change(Method::POST, "/x", None, &[200], deadline).err().unwrap();
    assert_eq!(e.to_string(), "POST /x: no answer within 0.3 s");
    assert!(BootClock.since_boot() - start < LONG);
}
