//! The promises of a volume, tested with the client that backups use.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout)]

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Certificate, ClientOptions, Error, GetOptions, MultipartUpload as _, ObjectStore, ObjectStoreExt as _,
    PutMode, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Name,
};
use quorumail_volume::*;

const ACCESS: &str = "volume-access";
const SECRET: &str = "volume-secret";

/// Where a server has its things.
struct Place {
    dir: tempfile::TempDir,
    ca_pem: Option<String>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["data", "credentials"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("credentials").join(ACCESS_KEY_FILE), ACCESS).unwrap();
        std::fs::write(dir.path().join("credentials").join(SECRET_KEY_FILE), SECRET).unwrap();
        Self { dir, ca_pem: None }
    }

    fn with_tls() -> Self {
        let mut place = Self::new();
        std::fs::create_dir(place.dir.path().join("tls")).unwrap();
        place.new_certificate();
        place
    }

    /// Writes another certificate, which only its own authority vouches for.
    fn new_certificate(&mut self) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let tls = self.dir.path().join("tls");
        std::fs::write(tls.join(KEY_FILE), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(tls.join(CERT_FILE), made.cert.pem()).unwrap();
        self.ca_pem = Some(made.cert.pem());
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn options(&self) -> Options {
        Options {
            directory: self.data(),
            bucket: BUCKET.to_owned(),
            credentials: self.dir.path().join("credentials"),
            tls: self.ca_pem.as_ref().map(|_| self.dir.path().join("tls")),
        }
    }

    /// A client that does not try again.
    fn client(&self, address: SocketAddr) -> AmazonS3 {
        self.client_as(address, ACCESS, SECRET, REGION)
    }

    fn client_as(&self, address: SocketAddr, access: &str, secret: &str, region: &str) -> AmazonS3 {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut options = ClientOptions::new().with_allow_http(self.ca_pem.is_none());
        if let Some(pem) = &self.ca_pem {
            options = options.with_root_certificate(Certificate::from_pem(pem.as_bytes()).unwrap());
        }
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        AmazonS3Builder::new()
            .with_client_options(options)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_endpoint(format!("{scheme}://{address}"))
            .with_bucket_name(BUCKET)
            .with_region(region)
            .with_access_key_id(access)
            .with_secret_access_key(secret)
            .build()
            .unwrap()
    }

    /// What the server has left aside.
    fn left_over(&self) -> usize {
        std::fs::read_dir(self.data().join(".uploading")).unwrap().count()
    }
}

/// A server in this process.
struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(place: &Place) -> Self {
        let server = Server::open(&place.options()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(server.serve(listener, async {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), task }
    }

    async fn end(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.task.await.unwrap();
    }
}

/// A server in a process of its own, which can be killed.
struct Killable {
    child: Child,
    address: SocketAddr,
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Killable {
    async fn start(place: &Place, directory: &Path) -> Self {
        Self::start_by(place, directory, Command::new).await
    }

    async fn start_by(place: &Place, directory: &Path, command: impl Fn(PathBuf) -> Command) -> Self {
        let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = command(std::env::current_exe().unwrap());
        command.args(["--exact", "serves_in_a_process_of_its_own", "--ignored", "--nocapture"]);
        command.env("VOLUME_DIRECTORY", directory).env("VOLUME_ADDRESS", address.to_string());
        command.env("VOLUME_CREDENTIALS", place.dir.path().join("credentials"));
        let mut child = command.stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(child.try_wait().unwrap().is_none() && started.elapsed().as_secs() < 30, "no start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { child, address }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: what other tests start and kill"]
async fn serves_in_a_process_of_its_own() {
    let Some(directory) = std::env::var_os("VOLUME_DIRECTORY") else { return };
    let options = Options {
        directory: directory.into(),
        bucket: BUCKET.to_owned(),
        credentials: std::env::var_os("VOLUME_CREDENTIALS").unwrap().into(),
        tls: None,
    };
    let listener = tokio::net::TcpListener::bind(std::env::var("VOLUME_ADDRESS").unwrap()).await.unwrap();
    Server::open(&options).unwrap().serve(listener, std::future::pending()).await;
}

fn noise(seed: u8, len: usize) -> Bytes {
    let mut state = u32::from(seed) + 1;
    let byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(byte).take(len).collect()
}

async fn get(client: &AmazonS3, name: &str) -> Bytes {
    client.get(&Name::from(name)).await.unwrap().bytes().await.unwrap()
}

async fn create(client: &AmazonS3, name: &str, bytes: Bytes) -> object_store::Result<()> {
    client.put_opts(&Name::from(name), bytes.into(), PutMode::Create.into()).await.map(drop)
}

#[tokio::test]
async fn objects_come_back_whole_and_in_part_and_are_files_of_their_names() {
    let place = Place::with_tls();
    let server = Running::start(&place).await;
    let client = place.client(server.address);
    for (name, len) in [("head", 0), ("packs/aa/0f", 700_001), ("packs/aa/10", 5)] {
        let bytes = noise(1, len);
        let put = client.put(&Name::from(name), bytes.clone().into()).await.unwrap();
        assert_eq!(get(&client, name).await, bytes);
        assert_eq!(std::fs::read(place.data().join(BUCKET).join(name)).unwrap(), bytes);
        let head = client.head(&Name::from(name)).await.unwrap();
        assert_eq!((head.size, head.e_tag), (len as u64, put.e_tag));
    }
    let pack = Name::from("packs/aa/0f");
    assert_eq!(
        client.get_range(&pack, 131_000..400_000).await.unwrap(),
        noise(1, 700_001).slice(131_000..400_000)
    );
    assert_eq!(client.get_range(&pack, 700_000..800_000).await.unwrap().len(), 1);
    let behind = client.get_range(&pack, 800_000..800_001).await.unwrap_err().to_string();
    assert!(behind.contains("InvalidRange") || behind.contains("out of range"), "{behind}");
    let stale = GetOptions { if_match: Some("other".to_owned()), ..GetOptions::default() };
    assert!(matches!(client.get_opts(&pack, stale).await, Err(Error::Precondition { .. })));
    client.put(&Name::from("head"), noise(2, 9).into()).await.unwrap();
    assert_eq!(get(&client, "head").await, noise(2, 9), "replaced");
    for name in ["packs/aa/0f", "packs/aa/10", "packs/aa/10", "never/was"] {
        client.delete(&Name::from(name)).await.unwrap();
    }
    assert!(matches!(client.get(&pack).await, Err(Error::NotFound { .. })));
    assert!(!place.data().join(BUCKET).join("packs").exists(), "folders that are empty go");
    assert_eq!(place.left_over(), 0);
    server.end().await;
}

#[tokio::test]
async fn listings_are_complete_over_many_pages_and_begin_where_they_are_told() {
    let place = Place::new();
    let folder = place.data().join(BUCKET).join("archive/1");
    std::fs::create_dir_all(&folder).unwrap();
    let names: Vec<String> = (0..2_500).map(|number| format!("archive/1/{number:04}")).collect();
    for name in &names {
        std::fs::write(place.data().join(BUCKET).join(name), "x").unwrap();
    }
    let server = Running::start(&place).await;
    let client = place.client(server.address);
    let listed = |found: Vec<object_store::ObjectMeta>| -> Vec<String> {
        found.into_iter().map(|meta| meta.location.to_string()).collect()
    };
    assert_eq!(listed(client.list(None).try_collect().await.unwrap()), names);
    let (prefix, after) = (Name::from("archive/1"), Name::from("archive/1/1499"));
    let behind = client.list_with_offset(Some(&prefix), &after).try_collect().await.unwrap();
    assert_eq!(listed(behind), names[1_500..]);
    assert_eq!(
        client.list(Some(&Name::from("arch"))).count().await,
        0,
        "a prefix is whole segments for this client"
    );
    let all = client.list(None).map_ok(|meta| meta.location).boxed();
    let deleted: Vec<_> = client.delete_stream(all).try_collect().await.unwrap();
    assert_eq!((deleted.len(), client.list(None).count().await), (2_500, 0));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_that_create_an_object_at_the_same_time_one_wins() {
    let place = Place::new();
    let server = Running::start(&place).await;
    for round in 0..8 {
        let name = format!("locks/{round}/lock");
        let tasks: Vec<_> = (0..16u8)
            .map(|number| {
                let (client, name) = (place.client(server.address), name.clone());
                tokio::spawn(async move { (number, create(&client, &name, noise(number, 3_000)).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (number, Ok(())) => winners.push(number),
                (_, Err(error)) => assert!(matches!(error, Error::AlreadyExists { .. }), "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(get(&place.client(server.address), &name).await, noise(winners[0], 3_000));
    }
    assert_eq!(place.left_over(), 0);
    server.end().await;
}

#[tokio::test]
async fn uploads_in_parts_come_back_and_those_given_up_leave_nothing() {
    let place = Place::new();
    let server = Running::start(&place).await;
    let client = place.client(server.address);
    let (name, part) = (Name::from("packs/big"), 5 << 20);
    let mut upload = client.put_multipart(&name).await.unwrap();
    let parts = [
        upload.put_part(noise(1, part).into()),
        upload.put_part(noise(2, part).into()),
        upload.put_part(noise(3, 7).into()),
    ];
    futures::future::try_join_all(parts).await.unwrap();
    assert!(matches!(client.head(&name).await, Err(Error::NotFound { .. })), "not before it is complete");
    upload.complete().await.unwrap();
    let whole: Vec<u8> = [noise(1, part), noise(2, part), noise(3, 7)].concat();
    assert_eq!(get(&client, "packs/big").await, whole);

    let mut upload = client.put_multipart(&Name::from("packs/none")).await.unwrap();
    upload.put_part(noise(1, part).into()).await.unwrap();
    assert_eq!(place.left_over(), 1);
    upload.abort().await.unwrap();
    let error = upload.complete().await.unwrap_err();
    assert!(format!("{error:?}").contains("NoSuchUpload"), "{error:?}");
    assert_eq!((place.left_over(), client.list(None).count().await), (0, 1));
    server.end().await;
}

#[tokio::test]
async fn whoever_has_not_the_keys_is_refused_and_told_no_secret() {
    let place = Place::new();
    let server = Running::start(&place).await;
    place.client(server.address).put(&Name::from("a"), noise(1, 3).into()).await.unwrap();
    for (access, secret, region, code) in [
        ("nobody", SECRET, REGION, "InvalidAccessKeyId"),
        (ACCESS, "wrong-secret", REGION, "SignatureDoesNotMatch"),
        (ACCESS, SECRET, "eu-central-7", "AuthorizationHeaderMalformed"),
    ] {
        let client = place.client_as(server.address, access, secret, region);
        let tries = [
            client.put(&Name::from("a"), noise(2, 3).into()).await.map(drop),
            client.get(&Name::from("a")).await.map(drop),
            client.list(None).try_collect::<Vec<_>>().await.map(drop),
            client.put_multipart(&Name::from("a")).await.map(drop),
        ];
        for result in tries {
            let text = format!("{:?}", result.unwrap_err());
            assert!(text.contains(code) && !text.contains(SECRET), "{text}");
        }
    }
    let http = reqwest::Client::new();
    let url = |path: &str| format!("http://{}{path}", server.address);
    for path in ["/", "/backups/a", "/backups?list-type=2"] {
        assert_eq!(http.get(url(path)).send().await.unwrap().status(), 403, "{path}");
    }
    let form =
        http.post(url("/backups")).header("content-type", "multipart/form-data; boundary=x").body("--x--");
    assert_eq!(form.send().await.unwrap().status(), 403);
    assert_eq!(http.get(url(HEALTH_PATH)).send().await.unwrap().status(), 200);
    assert_eq!(get(&place.client(server.address), "a").await, noise(1, 3));
    std::fs::rename(place.data().join(BUCKET), place.data().join("away")).unwrap();
    assert_eq!(http.get(url(HEALTH_PATH)).send().await.unwrap().status(), 503);
    server.end().await;
}

#[tokio::test]
async fn no_name_leaves_the_bucket_and_none_hides_another() {
    let place = Place::new();
    let server = Running::start(&place).await;
    let client = place.client(server.address);
    std::fs::write(place.data().join("secret"), "s").unwrap();
    // The client makes `%2E%2E` of dots, which the server takes for a name like any other: one that it does not have.
    for name in ["../secret", "a/../../secret", "..", "%2e%2e/secret", "a\\b", "a b", "ä"] {
        let error = client.put(&Name::from(name), noise(1, 1).into()).await.unwrap_err();
        assert!(format!("{error:?}").contains("InvalidArgument"), "{name}: {error:?}");
    }
    for path in ["/backups/../secret", "/backups/%2e%2e/secret", "/backups/..%2fsecret", "/../secret"] {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        use std::io::{Read as _, Write as _};
        let head =
            "Host: v\r\nConnection: close\r\nx-amz-content-sha256: e3\r\nAuthorization: AWS4-HMAC-SHA256 x";
        write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        let text = text.await.unwrap();
        assert!(text.starts_with("HTTP/1.1 4"), "{path}: {text}");
    }
    client.put(&Name::from("a/b"), noise(1, 1).into()).await.unwrap();
    for name in ["a", "a/b/c"] {
        let error = client.put(&Name::from(name), noise(1, 1).into()).await.unwrap_err();
        assert!(format!("{error:?}").contains("choose another"), "{name}: {error:?}");
    }
    assert!(matches!(client.get(&Name::from("a")).await, Err(Error::NotFound { .. })));
    assert!(matches!(client.get(&Name::from("a/b/c")).await, Err(Error::NotFound { .. })));
    assert_eq!(place.left_over(), 0);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_the_server_was_killed_and_nothing_is_torn() {
    let place = Place::new();
    let mut kept: Vec<(String, u8, usize)> = Vec::new();
    for round in 0..4u8 {
        let mut server = Killable::start(&place, &place.data()).await;
        let (told, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
        let writers: Vec<_> = (0..4u8)
            .map(|writer| {
                let (client, told) = (place.client(server.address), told.clone());
                tokio::spawn(async move {
                    for number in 0..u32::MAX {
                        let (name, len) = (format!("{round}/{writer}/{number}"), 200_000 + number as usize);
                        let put = match number % 2 {
                            0 => client.put(&Name::from(&*name), noise(writer, len).into()).await.map(drop),
                            _ => {
                                let mut upload = match client.put_multipart(&Name::from(&*name)).await {
                                    Ok(upload) => upload,
                                    Err(_) => return,
                                };
                                match upload.put_part(noise(writer, len).into()).await {
                                    Ok(()) => upload.complete().await.map(drop),
                                    Err(error) => Err(error),
                                }
                            }
                        };
                        if put.is_err() {
                            return;
                        }
                        let _ = told.send((name, writer, len));
                    }
                })
            })
            .collect();
        for _ in 0..12 {
            kept.push(acknowledged.recv().await.unwrap());
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
        while let Ok(more) = acknowledged.try_recv() {
            kept.push(more);
        }
    }
    let server = Killable::start(&place, &place.data()).await;
    let client = place.client(server.address);
    for (name, seed, len) in &kept {
        assert!(get(&client, name).await == noise(*seed, *len), "{name}");
    }
    // What was not acknowledged is whole or not there.
    let found: Vec<_> = client.list(None).try_collect().await.unwrap();
    assert!(found.len() >= kept.len());
    for meta in found {
        let name = meta.location.to_string();
        let parts: Vec<usize> = name.split('/').map(|part| part.parse().unwrap()).collect();
        assert!(get(&client, &name).await == noise(parts[1] as u8, 200_000 + parts[2]), "{name}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_another_one_leaves_nothing() {
    use std::io::Write as _;
    let place = Place::new();
    let server = Running::start(&place).await;
    let client = place.client(server.address);
    // Signed for other bytes: the same request through a proxy that changes it.
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let (between, to) = (listener.local_addr().unwrap(), server.address);
    std::thread::spawn(move || {
        for (number, from) in listener.incoming().flatten().enumerate() {
            use std::io::Read as _;
            let (mut from, mut to) = (from, std::net::TcpStream::connect(to).unwrap());
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.ends_with(b"the body") {
                let read = from.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..read]);
            }
            let end = request.len() - 1;
            request[end] = b'!';
            if number > 0 {
                request.truncate(end);
            }
            to.write_all(&request).unwrap();
            to.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = std::io::copy(&mut to, &mut from);
        }
    });
    for _ in 0..2 {
        // The host is signed too, so that the proxy is the one that is asked.
        let through = place.client(between);
        assert!(through.put(&Name::from("a"), Bytes::from_static(b"the body").into()).await.is_err());
        assert!(matches!(client.get(&Name::from("a")).await, Err(Error::NotFound { .. })));
    }
    server.end().await;
    assert_eq!(place.left_over(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_volume_is_told_leaves_nothing_half_written_and_takes_more_once_it_has_room() {
    let place = Place::new();
    let mount = place.data();
    // Seen by the server alone, and gone with it.
    let server = Killable::start_by(&place, &mount, |program| {
        let mut command = Command::new("unshare");
        let script = r#"mount -t tmpfs -o size=25m tmpfs "$1" && shift && exec "$@""#;
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&mount).arg(program);
        command
    })
    .await;
    let client = place.client(server.address);
    let mut stored = Vec::new();
    let error = loop {
        let name = format!("packs/{}", stored.len());
        match client.put(&Name::from(&*name), noise(stored.len() as u8, 3 << 20).into()).await {
            Ok(_) => stored.push(name),
            Err(error) => break format!("{error:?}"),
        }
        assert!(stored.len() < 9);
    };
    assert!(error.contains("507") && error.contains("make its claim larger"), "{error}");
    let mut upload = client.put_multipart(&Name::from("big")).await.unwrap();
    let parts: Vec<_> = (0..5).map(|number| upload.put_part(noise(number, 5 << 20).into())).collect();
    assert!(futures::future::try_join_all(parts).await.is_err());
    upload.abort().await.unwrap();
    assert_eq!(client.list(None).count().await, stored.len());
    for (number, name) in stored.iter().enumerate() {
        assert!(get(&client, name).await == noise(number as u8, 3 << 20), "{name}");
    }
    client.delete(&Name::from(&*stored[0])).await.unwrap();
    client.put(&Name::from("again"), noise(1, 3 << 20).into()).await.unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_the_connections_of_the_old_one_go_on() {
    let mut place = Place::with_tls();
    let server = Running::start(&place).await;
    let before = place.client(server.address);
    before.put(&Name::from("a"), noise(1, 1).into()).await.unwrap();
    place.new_certificate();
    let after = place.client(server.address);
    let started = Instant::now();
    while let Err(error) = after.head(&Name::from("a")).await {
        assert!(started.elapsed().as_secs() < 30, "{error:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    server.end().await;
}

#[tokio::test]
async fn one_server_uses_a_directory_and_one_that_ends_finishes_what_it_has_begun() {
    let place = Place::new();
    let server = Running::start(&place).await;
    let error = Server::open(&place.options()).err().expect("it is in use");
    assert!(matches!(error, VolumeError::InUse(_)), "{error}");
    let client = place.client(server.address);
    let puts: Vec<_> = (0..6u8)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { create(&client, &format!("n/{number}"), noise(number, 4 << 20)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.end().await;
    let mut done = Vec::new();
    for (number, put) in puts.into_iter().enumerate() {
        if put.await.unwrap().is_ok() {
            done.push(number as u8);
        }
    }
    assert_eq!(place.left_over(), 0);
    let server = Running::start(&place).await;
    let client = place.client(server.address);
    for number in done {
        assert!(get(&client, &format!("n/{number}")).await == noise(number, 4 << 20));
    }
    server.end().await;
}

#[test]
fn what_is_missing_is_told_before_anything_is_served() {
    let place = Place::new();
    let problem = |options: Options| Server::open(&options).err().expect("it is refused").to_string();
    let nowhere = Options { directory: place.data().join("no"), ..place.options() };
    assert!(problem(nowhere).contains("mount a volume there"));
    for bucket in ["", "..", ".uploading", "a/b"] {
        assert!(problem(Options { bucket: bucket.into(), ..place.options() }).contains("name of a bucket"));
    }
    let tls = Options { tls: Some(place.data()), ..place.options() };
    assert!(problem(tls).contains(CERT_FILE));
    let none = Options { credentials: place.data(), ..place.options() };
    let text = problem(none);
    assert!(text.contains(ACCESS_KEY_FILE) && !text.contains(SECRET), "{text}");
}
