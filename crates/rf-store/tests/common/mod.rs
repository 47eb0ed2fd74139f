//! Two ordinary users, Ann and Bob, each with one of everything; and an operator.
#![allow(dead_code, reason = "each test file uses a part")]

use rf_store::{
    CredentialHash, Known, NewKey, NewMachine, NewRepeat, NewSandbox, NewSession, NewUser, OperatorScope, SessionMaker,
    Store, StoreError, SystemScope, UserScope,
};
use rf_types::{KeyId, MachineId, SandboxAbout, SandboxId, SandboxSpec, SessionId, UserLimits, units::UnixMs};

pub(crate) const NOW: UnixMs = 1_700_000_000_000;
pub(crate) const HOUR: UnixMs = 3_600_000;

/// One user and their things.
pub(crate) struct Person {
    pub(crate) scope: UserScope,
    pub(crate) key: KeyId,
    pub(crate) key_hash: CredentialHash,
    pub(crate) session: SessionId,
    pub(crate) session_hash: CredentialHash,
    pub(crate) token: CredentialHash,
    pub(crate) machine: MachineId,
    pub(crate) sandbox: SandboxId,
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) system: SystemScope,
    pub(crate) operator: OperatorScope,
    pub(crate) ann: Person,
    pub(crate) bob: Person,
}

pub(crate) fn hash(text: &str) -> CredentialHash {
    CredentialHash::from_bytes(*blake3::hash(text.as_bytes()).as_bytes())
}

pub(crate) fn insert(
    store: &Store,
    system: &SystemScope,
    scope: &UserScope,
    name: Option<&str>,
) -> Result<SandboxId, StoreError> {
    let new = NewSandbox {
        id: SandboxId::random(),
        name,
        spec: &SandboxSpec::standard(HOUR),
        about: &SandboxAbout::default(),
        from_snapshot: None,
    };
    store.sandbox_insert(system, scope.user(), &new, NOW, NOW + HOUR).map(|()| new.id)
}

/// Makes a sandbox for a request that may come again.
pub(crate) fn insert_once(w: &World, scope: &UserScope, key: &str, now: UnixMs) -> SandboxId {
    let (spec, about) = (SandboxSpec::standard(HOUR), SandboxAbout::default());
    let new = NewSandbox { id: SandboxId::random(), name: None, spec: &spec, about: &about, from_snapshot: None };
    let repeat = NewRepeat { key, digest: [1; 32] };
    w.store.sandbox_insert_once(&w.system, scope.user(), &new, now, now + HOUR, Some(&repeat)).unwrap();
    new.id
}

pub(crate) fn enrol(store: &Store, token: &CredentialHash, public_key: [u8; 32]) -> Option<(UserScope, MachineId)> {
    let facts = serde_json::json!({ "hostname": "box" });
    let new = NewMachine { name: "box", public_key: &public_key, facts: &facts, level: "workspace" };
    store.machine_enrol(token, &new, NOW).unwrap().ok().map(|(scope, machine)| (scope, machine.id))
}

fn person(store: &Store, system: &SystemScope, operator: &OperatorScope, name: &str) -> Person {
    let new = NewUser { name: name.parse().unwrap(), operator: false, limits: UserLimits::STANDARD };
    let (scope, _) = store.user_create(operator, &new, NOW).unwrap();
    let key_hash = hash(&format!("{name}'s key"));
    let key = NewKey { name: "k", hash: key_hash, scopes: "read run", expires: Some(NOW + HOUR) };
    let key = store.key_insert(&scope, &key, NOW).unwrap().id;
    let session = SessionId::new(scope.username(), NOW / 1_000);
    let session_hash = hash(&format!("{name}'s session"));
    let begin = NewSession {
        id: &session,
        hash: session_hash,
        scopes: "read",
        expires: NOW + HOUR,
        maker: SessionMaker::Key(key),
    };
    store.session_begin(&scope, &begin, NOW).unwrap().unwrap();
    let joined = hash(&format!("{name}'s used token"));
    store.enrolment_token_make(&scope, &joined, NOW + HOUR, NOW).unwrap();
    let mut public_key = [0; 32];
    public_key[..name.len()].copy_from_slice(name.as_bytes());
    let (_, machine) = enrol(store, &joined, public_key).unwrap();
    let token = hash(&format!("{name}'s token"));
    store.enrolment_token_make(&scope, &token, NOW + HOUR, NOW).unwrap();
    // Both have a sandbox of the same name: a name is one user's own.
    let sandbox = insert(store, system, &scope, Some("mine")).unwrap();
    store
        .scope_by_subject_or_create(
            "https://issuer",
            name,
            &[format!("{name}-2").parse().unwrap()],
            &UserLimits::STANDARD,
            NOW,
        )
        .unwrap()
        .unwrap();
    Person { scope, key, key_hash, session, session_hash, token, machine, sandbox }
}

pub(crate) fn known_key(store: &Store, text: &str) -> Known<KeyId> {
    store.scope_by_key(&hash(text), NOW).unwrap().unwrap()
}

pub(crate) fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let (store, system) = Store::open(dir.path()).unwrap();
    let (root, _) = store.user_create_first(&system, &"root".parse().unwrap(), NOW).unwrap();
    let key = NewKey { name: "first", hash: hash("root"), scopes: "operate", expires: None };
    store.key_insert(&root, &key, NOW).unwrap();
    let operator = known_key(&store, "root").operator.unwrap();
    let ann = person(&store, &system, &operator, "ann");
    let bob = person(&store, &system, &operator, "bob");
    World { dir, store, system, operator, ann, bob }
}
