//! Pulls from a registry within the test: what it takes, and what it must not be talked into.

mod support;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use rf_images::{
    Blobs, Credentials, Digest, Image, ImageCaps, ImageError, Progress, Reference, Registry, RegistryOptions, Secret,
};
use support::{ARCH, Made, image, index, quiet};

const CAPS: ImageCaps = ImageCaps::STANDARD;

/// What a request looked like: path with query, and headers.
type Seen = (String, HeaderMap);
type Answer = dyn Fn(&str, &HeaderMap) -> Option<Response> + Send + Sync;

/// A registry on a loopback port of its own, with a hand in every answer.
#[derive(Clone)]
struct Fake {
    documents: Arc<HashMap<String, Vec<u8>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Answer>,
    address: std::net::SocketAddr,
}

impl Fake {
    /// Serves `/v2/repo/...` from these; `answer` is asked first.
    async fn start(
        documents: HashMap<String, Vec<u8>>,
        answer: impl Fn(&str, &HeaderMap) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            documents: Arc::new(documents),
            seen: Arc::default(),
            answer: Arc::new(answer),
            address: listener.local_addr().unwrap(),
        };
        let router = Router::new().fallback(serve).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    fn reference(&self, version: &str) -> Reference {
        format!("{}/some/repo{version}", self.address).parse().unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn asked_with_authorization(&self) -> Vec<String> {
        let with = self.seen().into_iter().filter(|(_, headers)| headers.contains_key(header::AUTHORIZATION));
        with.map(|(path, _)| path).collect()
    }
}

async fn serve(State(fake): State<Fake>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().to_string();
    fake.seen.lock().unwrap().push((path.clone(), request.headers().clone()));
    if let Some(answer) = (fake.answer)(&path, request.headers()) {
        return answer;
    }
    let Some(bytes) = fake.documents.get(&path) else { return plain(StatusCode::NOT_FOUND, "") };
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    match range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()) {
        Some(start) => Response::builder()
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(Body::from(bytes[start..].to_vec()))
            .unwrap(),
        None => Response::new(Body::from(bytes.clone())),
    }
}

fn plain(status: StatusCode, text: &str) -> Response {
    Response::builder().status(status).body(Body::from(text.to_owned())).unwrap()
}

fn redirect(to: &str) -> Response {
    Response::builder().status(StatusCode::TEMPORARY_REDIRECT).header(header::LOCATION, to).body(Body::empty()).unwrap()
}

fn challenge(text: &str) -> Response {
    let unauthorized = Response::builder().status(StatusCode::UNAUTHORIZED);
    unauthorized.header(header::WWW_AUTHENTICATE, text).body(Body::empty()).unwrap()
}

fn documents(made: &Made, tags: &[(&str, &[u8])]) -> HashMap<String, Vec<u8>> {
    let blob = |bytes: &Vec<u8>| (format!("/v2/some/repo/blobs/{}", Digest::of(bytes)), bytes.clone());
    let mut all: HashMap<_, _> = made.blobs.iter().map(blob).collect();
    all.insert(format!("/v2/some/repo/manifests/{}", Digest::of(&made.manifest)), made.manifest.clone());
    all.extend(tags.iter().map(|(tag, bytes)| (format!("/v2/some/repo/manifests/{tag}"), bytes.to_vec())));
    all
}

struct Store {
    _dir: tempfile::TempDir,
    blobs: Arc<Blobs>,
}

fn store() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(dir.path()).unwrap());
    Store { _dir: dir, blobs }
}

async fn pull(reference: &Reference, credentials: &Credentials, store: &Store) -> Result<Image, ImageError> {
    let registry = Registry::new(RegistryOptions::default()).unwrap();
    registry.pull(reference, credentials, &store.blobs, &CAPS, &quiet).await
}

fn basic() -> Credentials {
    Credentials::Basic { user: "user".to_owned(), password: Secret::new("hunter2".to_owned()) }
}

/// `user:hunter2` in base 64.
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

fn check(image: &Image, made: &Made) {
    let found: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(found, made.diff_ids);
    assert_eq!(image.digest, Digest::of(&made.manifest));
    assert_eq!(image.config.cwd, "/work");
}

#[tokio::test]
async fn the_platform_of_this_machine_is_pulled_and_only_once() {
    let (ours, other) = (image(ARCH), image("riscv64"));
    let all = index(&[("riscv64", &other.manifest), (ARCH, &ours.manifest)]);
    let fake = Fake::start(documents(&ours, &[("v1", &all), ("latest", &ours.manifest)]), |_, _| None).await;
    let store = store();
    let told = Mutex::new(Vec::new());
    let registry = Registry::new(RegistryOptions::default()).unwrap();
    let made = registry
        .pull(&fake.reference(":v1"), &Credentials::Anonymous, &store.blobs, &CAPS, &|progress| {
            told.lock().unwrap().push(progress);
        })
        .await
        .unwrap();
    check(&made, &ours);
    let total: u64 = ours.blobs.iter().map(|blob| blob.len() as u64).sum();
    assert_eq!(told.into_inner().unwrap().last(), Some(&Progress { bytes_done: total, bytes_total: total }));
    for layer in &made.layers {
        assert!(store.blobs.get(&layer.blob).unwrap().is_some());
    }
    let blobs_asked = |fake: &Fake| fake.seen().iter().filter(|(path, _)| path.contains("/blobs/")).count();
    assert_eq!(blobs_asked(&fake), 3);
    // By tag without an index, and by digest: every blob is there.
    for version in ["", &format!("@{}", Digest::of(&ours.manifest))] {
        check(&pull(&fake.reference(version), &Credentials::Anonymous, &store).await.unwrap(), &ours);
    }
    assert_eq!(blobs_asked(&fake), 3);
    let absent = pull(&fake.reference(":none"), &Credentials::Anonymous, &store).await.unwrap_err();
    assert!(matches!(absent, ImageError::Absent(_)), "{absent}");
    let only_other =
        Fake::start(documents(&other, &[("latest", &index(&[("riscv64", &other.manifest)]))]), |_, _| None).await;
    let error = pull(&only_other.reference(""), &Credentials::Anonymous, &store).await.unwrap_err();
    assert!(matches!(&error, ImageError::Unusable(why) if why.contains("linux/riscv64")), "{error}");
}

#[tokio::test]
async fn bytes_that_are_not_those_named_are_refused() {
    let ours = image(ARCH);
    let low = format!("/v2/some/repo/blobs/{}", Digest::of(&ours.blobs[0]));
    let with = |change: fn(&mut Vec<u8>)| {
        let mut all = documents(&ours, &[("latest", &ours.manifest)]);
        change(all.get_mut(&low).unwrap());
        Fake::start(all, |_, _| None)
    };
    let store = store();
    let fake = with(|bytes| bytes[20] ^= 1).await;
    let error = pull(&fake.reference(""), &Credentials::Anonymous, &store).await.unwrap_err();
    assert!(matches!(error, ImageError::Digest { .. }), "{error}");
    let fake = with(|bytes| bytes.push(0)).await;
    let error = pull(&fake.reference(""), &Credentials::Anonymous, &store).await.unwrap_err();
    assert!(matches!(error, ImageError::Size { .. }), "{error}");
    let fake = with(|bytes| bytes.truncate(30)).await;
    let error = pull(&fake.reference(""), &Credentials::Anonymous, &store).await.unwrap_err();
    assert!(matches!(error, ImageError::Size { found: 30, .. } | ImageError::Protocol { .. }), "{error}");
    assert!(store.blobs.get(&Digest::of(&ours.blobs[0])).unwrap().is_none());
    // A manifest that has not the digest by which it was asked for, or that its own header tells.
    let wrong = format!("/v2/some/repo/manifests/{}", Digest::of(b"another"));
    let manifest = ours.manifest.clone();
    let fake = Fake::start(HashMap::new(), move |path, _| {
        if path == wrong {
            return Some(Response::new(Body::from(manifest.clone())));
        }
        let lie = Response::builder().header("docker-content-digest", Digest::of(b"another").to_string());
        Some(lie.body(Body::from(manifest.clone())).unwrap())
    })
    .await;
    for version in [format!("@{}", Digest::of(b"another")), ":tag".to_owned()] {
        let error = pull(&fake.reference(&version), &Credentials::Anonymous, &store).await.unwrap_err();
        assert!(matches!(error, ImageError::Digest { .. }), "{error}");
    }
    // A manifest without end.
    let fake = Fake::start(HashMap::new(), |_, _| Some(plain(StatusCode::OK, &" ".repeat(5 << 20)))).await;
    let error = pull(&fake.reference(""), &Credentials::Anonymous, &store).await.unwrap_err();
    assert!(matches!(error, ImageError::Bound { .. }), "{error}");
    // Control: the right bytes into the same store.
    let fake = with(|_| ()).await;
    check(&pull(&fake.reference(""), &Credentials::Anonymous, &store).await.unwrap(), &ours);
}

/// Answers each connection with the next of these and closes it; returns where, and what each asked.
async fn raw(answers: Vec<Vec<u8>>) -> (std::net::SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
            asked.push(String::from_utf8(head).unwrap().to_ascii_lowercase());
        }
        asked
    });
    (address, served)
}

fn head(status: &str, length: usize, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn a_broken_connection_is_gone_on_with() {
    let ours = image(ARCH);
    let low = ours.blobs[0].clone();
    let half = low.len() / 2;
    let broken = || [head("200 OK", low.len(), ""), low[..half].to_vec()].concat();
    let rest = |start: usize| {
        let range = format!("Content-Range: bytes {start}-{}/{}\r\n", low.len() - 1, low.len());
        [head("206 Partial Content", low.len() - start, &range), low[start..].to_vec()].concat()
    };
    let pull_from = async |answers| {
        let (address, served) = raw(answers).await;
        let path = format!("/v2/some/repo/blobs/{}", Digest::of(&low));
        let fake = Fake::start(documents(&ours, &[("latest", &ours.manifest)]), move |asked, _| {
            (asked == path).then(|| redirect(&format!("http://{address}/blob")))
        })
        .await;
        (pull(&fake.reference(""), &Credentials::Anonymous, &store()).await, served)
    };
    // Half of it comes; the rest is asked for by range.
    let (made, served) = pull_from(vec![broken(), rest(half)]).await;
    check(&made.unwrap(), &ours);
    let asked = served.await.unwrap();
    assert!(!asked[0].contains("range:"), "{}", asked[0]);
    assert!(asked[1].contains(&format!("range: bytes={half}-\r\n")), "{}", asked[1]);
    // A server that knows no ranges sends all again.
    let (made, _) = pull_from(vec![broken(), [head("200 OK", low.len(), ""), low.clone()].concat()]).await;
    check(&made.unwrap(), &ours);
    // Another part than was asked for is refused.
    let (error, _) = pull_from(vec![broken(), rest(half - 1)]).await;
    assert!(matches!(error, Err(ImageError::Protocol { .. })), "{error:?}");
    // One that never sends a byte more is given up.
    let (error, served) = pull_from(vec![broken(); 8]).await;
    assert!(matches!(error, Err(ImageError::Unreachable { .. })), "{error:?}");
    served.abort();
}

#[tokio::test]
async fn credentials_go_to_the_token_server_and_tokens_to_the_registry() {
    let ours = image(ARCH);
    let tokens = Fake::start(HashMap::new(), |_, headers| {
        let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == BASIC);
        Some(plain(if known { StatusCode::OK } else { StatusCode::UNAUTHORIZED }, r#"{"token":"t0ken"}"#))
    })
    .await;
    let realm =
        format!(r#"Bearer realm="http://{}/token",service="fake",scope="repository:evil:push""#, tokens.address);
    let fake = Fake::start(documents(&ours, &[("latest", &ours.manifest)]), move |_, headers| {
        let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Bearer t0ken");
        (!known).then(|| challenge(&realm))
    })
    .await;
    check(&pull(&fake.reference(""), &basic(), &store()).await.unwrap(), &ours);
    // The registry never saw the password, and the scope is what was asked for.
    for (path, headers) in fake.seen() {
        assert!(headers.get(header::AUTHORIZATION).is_none_or(|value| value == "Bearer t0ken"), "{path}");
    }
    assert_eq!(tokens.seen().len(), 1);
    assert_eq!(tokens.seen()[0].0, "/token?scope=repository%3Asome%2Frepo%3Apull&service=fake");
    // Without credentials, and with wrong ones, it is denied.
    for credentials in [
        Credentials::Anonymous,
        Credentials::Basic { user: "user".to_owned(), password: Secret::new("wrong".to_owned()) },
    ] {
        let error = pull(&fake.reference(""), &credentials, &store()).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    }
    // A bearer token of one's own is used as it is.
    check(
        &pull(&fake.reference(""), &Credentials::Bearer(Secret::new("t0ken".to_owned())), &store()).await.unwrap(),
        &ours,
    );
}

#[tokio::test]
async fn basic_credentials_are_sent_only_when_asked_for() {
    let ours = image(ARCH);
    let open = Fake::start(documents(&ours, &[("latest", &ours.manifest)]), |_, _| None).await;
    pull(&open.reference(""), &basic(), &store()).await.unwrap();
    assert_eq!(open.asked_with_authorization(), Vec::<String>::new());
    let closed = Fake::start(documents(&ours, &[("latest", &ours.manifest)]), |_, headers| {
        let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == BASIC);
        (!known).then(|| challenge("Basic realm=\"fake\""))
    })
    .await;
    check(&pull(&closed.reference(""), &basic(), &store()).await.unwrap(), &ours);
    let error = pull(&closed.reference(""), &Credentials::Anonymous, &store()).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_is_checked_without_an_image() {
    let ask = async |fake: &Fake, credentials| {
        Registry::new(RegistryOptions::default()).unwrap().check(&fake.reference(""), &credentials).await
    };
    let wrong = || Credentials::Basic { user: "user".to_owned(), password: Secret::new("wrong".to_owned()) };
    let there = || HashMap::from([("/v2/".to_owned(), b"{}".to_vec())]);
    let tokens = Fake::start(HashMap::new(), |_, headers| {
        let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == BASIC);
        Some(plain(if known { StatusCode::OK } else { StatusCode::UNAUTHORIZED }, r#"{"token":"t0ken"}"#))
    })
    .await;
    let realm = format!(r#"Bearer realm="http://{}/token",service="fake""#, tokens.address);
    for (wanted, challenged) in [("Bearer t0ken", realm.as_str()), (BASIC, "Basic realm=\"fake\"")] {
        let text = challenged.to_owned();
        let closed = Fake::start(there(), move |_, headers| {
            let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == wanted);
            (!known).then(|| challenge(&text))
        })
        .await;
        ask(&closed, basic()).await.unwrap();
        for credentials in [wrong(), Credentials::Anonymous, Credentials::Bearer(Secret::new("other".to_owned()))] {
            let error = ask(&closed, credentials).await.unwrap_err();
            assert!(matches!(error, ImageError::Denied { .. }), "{wanted}: {error}");
        }
        assert!(closed.seen().iter().all(|(path, _)| path == "/v2/"));
    }
    // No token for anything in particular.
    assert!(tokens.seen().iter().all(|(path, _)| path == "/token?service=fake"), "{:?}", tokens.seen());
    ask(&Fake::start(there(), |_, _| None).await, Credentials::Anonymous).await.unwrap();
    let other = Fake::start(HashMap::new(), |_, _| None).await;
    assert!(matches!(ask(&other, basic()).await.unwrap_err(), ImageError::Protocol { .. }));
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_credentials() {
    let ours = image(ARCH);
    // Another port is another origin.
    let cdn = Fake::start(documents(&ours, &[]), |_, _| None).await;
    let to = cdn.address;
    let within = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&within);
    let fake = Fake::start(documents(&ours, &[("latest", &ours.manifest)]), move |path, headers| {
        if headers.get(header::AUTHORIZATION).is_none_or(|value| value != BASIC) {
            return Some(challenge("Basic realm=\"fake\""));
        }
        if path == "/v2/some/repo/manifests/moved" {
            *counted.lock().unwrap() += 1;
            return Some(redirect("/v2/some/repo/manifests/latest"));
        }
        path.contains("/blobs/").then(|| redirect(&format!("http://{to}{path}")))
    })
    .await;
    check(&pull(&fake.reference(":moved"), &basic(), &store()).await.unwrap(), &ours);
    assert_eq!(cdn.seen().len(), 3);
    assert_eq!(cdn.asked_with_authorization(), Vec::<String>::new());
    // Control: a redirect within the registry keeps them, so the absence above means something.
    assert!(fake.asked_with_authorization().contains(&"/v2/some/repo/manifests/latest".to_owned()));
    assert_eq!(*within.lock().unwrap(), 1);
}

/// Attack: a place that the registry sends on to wants a password, and names the server to send it to.
#[tokio::test]
async fn only_the_registry_itself_says_who_gets_the_password() {
    let ours = image(ARCH);
    let thief = Fake::start(HashMap::new(), |_, _| Some(plain(StatusCode::OK, r#"{"token":"t0ken"}"#))).await;
    let realm = format!("Bearer realm=\"http://{}/token\"", thief.address);
    let asks = realm.clone();
    let cdn = Fake::start(HashMap::new(), move |_, _| Some(challenge(&asks))).await;
    let to = cdn.address;
    let fake = Fake::start(documents(&ours, &[("latest", &ours.manifest)]), move |path, _| {
        path.contains("/blobs/").then(|| redirect(&format!("http://{to}{path}")))
    })
    .await;
    let error = pull(&fake.reference(""), &basic(), &store()).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    assert_eq!(cdn.seen().len(), 1);
    assert_eq!(thief.seen().len(), 0);
    // Control: the registry itself may name it.
    let own = Fake::start(HashMap::new(), move |_, _| Some(challenge(&realm))).await;
    assert!(pull(&own.reference(""), &basic(), &store()).await.is_err());
    assert_eq!(thief.asked_with_authorization().len(), 1);
}

#[tokio::test]
async fn redirects_and_token_servers_that_lead_astray_are_refused() {
    let astray = [
        ("ftp://example.com/x", "neither http nor https"),
        ("http://example.com/x", "not encrypted"),
        ("http://user:pass@127.0.0.1/x", "credentials"),
    ];
    for (to, why) in astray {
        let fake = Fake::start(HashMap::new(), move |_, _| Some(redirect(to))).await;
        let error = pull(&fake.reference(""), &basic(), &store()).await.unwrap_err();
        assert!(matches!(&error, ImageError::Insecure { why: found, .. } if found.contains(why)), "{to}: {error}");
        let fake = Fake::start(HashMap::new(), move |_, _| Some(challenge(&format!("Bearer realm=\"{to}\"")))).await;
        let error = pull(&fake.reference(""), &basic(), &store()).await.unwrap_err();
        assert!(matches!(&error, ImageError::Insecure { why: found, .. } if found.contains(why)), "{to}: {error}");
    }
    let round = Fake::start(HashMap::new(), |path, _| Some(redirect(path))).await;
    let error = pull(&round.reference(""), &basic(), &store()).await.unwrap_err();
    assert!(matches!(error, ImageError::Protocol { .. }), "{error}");
    let nowhere = Fake::start(HashMap::new(), |_, _| Some(plain(StatusCode::FOUND, ""))).await;
    assert!(matches!(pull(&nowhere.reference(""), &basic(), &store()).await, Err(ImageError::Protocol { .. })));
    // A token server without end.
    let endless = Fake::start(HashMap::new(), |_, _| Some(plain(StatusCode::OK, &" ".repeat(1 << 20)))).await;
    let realm = format!("Bearer realm=\"http://{}/t\"", endless.address);
    let fake = Fake::start(HashMap::new(), move |_, _| Some(challenge(&realm))).await;
    assert!(matches!(pull(&fake.reference(""), &basic(), &store()).await, Err(ImageError::Bound { .. })));
}
