use rf_types::{Code, Enforcement, UserId};

use super::*;

fn row(n: u64, state: SandboxState, labels: &[(&str, &str)]) -> SandboxRow {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    SandboxRow {
        id: SandboxId::from_bits(n.into()),
        user: UserId::from_bits(1),
        name: None,
        default: false,
        spec: SandboxSpec::standard(1_000),
        state,
        pause_kind: None,
        paused_at: None,
        saved: None,
        from_snapshot: None,
        about: SandboxAbout { labels, ..SandboxAbout::default() },
        created_at: n,
        started_at: n / 2,
        lease_until: n,
        pooled: false,
        enforcement: Enforcement { level: String::new(), mode: String::new(), layers: Vec::new() },
    }
}

fn rows() -> Vec<SandboxRow> {
    let state = |n| if n % 3 == 0 { SandboxState::Paused } else { SandboxState::Running };
    (0..10).map(|n| row(n, state(n), &[("n", if n < 5 { "low" } else { "high" }), ("all", "yes")])).collect()
}

fn numbers(rows: &[SandboxRow]) -> Vec<u128> {
    rows.iter().map(|row| row.id.bits()).collect()
}

fn filter(query: &str) -> Result<Filter, Fault> {
    Filter::new(input::query(&format!("/v2/sandboxes?{query}").parse().unwrap())?)
}

fn found(query: &str) -> Vec<u128> {
    numbers(&filter(query).unwrap().page(rows()).0)
}

#[test]
fn the_newest_comes_first_unless_asked_otherwise() {
    assert_eq!(found(""), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(found("order=asc"), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(found("order=desc&limit=2"), [9, 8]);
}

#[test]
fn filters_take_what_they_name() {
    assert_eq!(found("state=paused"), [9, 6, 3, 0]);
    assert_eq!(found("state=running"), [8, 7, 5, 4, 2, 1]);
    assert_eq!(found("state=running%2Cpaused").len(), 10);
    assert_eq!(found("metadata=n%3Dlow%26all%3Dyes"), [4, 3, 2, 1, 0]);
    assert_eq!(found("metadata=n%3Dlow%26all%3Dno"), []);
    assert_eq!(found("startedAfter=1970-01-01T00%3A00%3A00.004Z"), [9, 8]);
    assert_eq!(found("startedAfter=1970-01-01T00:00:00.004+00:00"), [9, 8]);
    assert_eq!(found("template=host").len(), 10);
    assert_eq!(found("template=unknown-template"), []);
    assert_eq!(filter("state=paused").unwrap().page(rows()).2, 6, "those that run are counted over all states");
}

#[test]
fn pages_go_on_where_the_last_one_ended_though_its_last_item_has_gone() {
    for (order, all) in [("asc", (0..10).collect::<Vec<u128>>()), ("desc", (0..10).rev().collect())] {
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let filter = filter(&format!("order={order}&limit=3&nextToken={token}")).unwrap();
            // What was shown last is not there any more.
            let left = rows().into_iter().filter(|row| seen.last() != Some(&row.id.bits())).collect();
            let (page, next, _) = filter.page(left);
            assert!(page.len() <= 3);
            seen.extend(numbers(&page));
            match next {
                Some(next) => token = next,
                None => break,
            }
        }
        assert_eq!(seen, all, "{order}");
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    for wrong in [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=%2B5",
        "limit=",
        "order=up",
        "state=stopped",
        "nextToken=x",
        "nextToken=1-x",
        "nextToken=%2B1-sbx00112233445566778899aabbccddeeff",
        "startedAfter=yesterday",
        "metadata=a%25zz%3D1",
    ] {
        assert_eq!(filter(wrong).map(drop).unwrap_err().code, Code::InvalidRequest, "{wrong}");
    }
    assert!(filter("unknown=1").is_ok(), "clients of other versions send what this one does not know");
}

#[test]
fn a_lease_is_within_its_bounds() {
    let user = UserLimits { lease_ms_max: 100_000, ..UserLimits::STANDARD };
    assert_eq!(lease_ms(None, TIMEOUT_V1, &user).unwrap(), 15_000);
    assert_eq!(lease_ms(None, TIMEOUT_V2, &user).unwrap(), 100_000, "the standard one gives way");
    assert_eq!(lease_ms(Some(0), TIMEOUT_V2, &user).unwrap(), 1_000);
    assert_eq!(lease_ms(Some(100), TIMEOUT_V2, &user).unwrap(), 100_000);
    assert!(lease_ms(Some(101), TIMEOUT_V2, &user).unwrap_err().message.contains("100 s"));
    assert!(lease_ms(Some(u32::MAX), TIMEOUT_V2, &user).is_err());
}

#[test]
fn what_cannot_be_held_is_refused_by_name_and_what_clients_always_send_is_not() {
    let check = |text: &str| refuse_what_is_not_held(&serde_json::from_str(text).unwrap(), false);
    for taken in [
        r#"{"templateID":"base","metadata":{},"envVars":{}}"#,
        r#"{"templateID":"base","secure":true,"allow_internet_access":true,"autoPause":false}"#,
        r#"{"templateID":"base","allow_internet_access":false,"network":{"denyOut":["0.0.0.0/0"]}}"#,
        r#"{"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":false}}"#,
        r#"{"templateID":"base","mcp":{"server":{}},"iam":{"tokens":{}},"volumeMounts":[]}"#,
    ] {
        assert_eq!(check(taken), Ok(()), "{taken}");
    }
    for (refused, name) in [
        ("{}", "templateID"),
        (r#"{"templateID":"base","network":{"allowOut":["1.1.1.1"]}}"#, "network.allowOut"),
        (r#"{"templateID":"base","network":{"rules":{"a":[]}}}"#, "network.rules"),
        (r#"{"templateID":"base","iam":{"tokens":{"a":{}}}}"#, "iam"),
        (r#"{"templateID":"base","secure":false}"#, "secure"),
        (r#"{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}"#, "volumeMounts"),
        (r#"{"templateID":"base","autoPauseMemory":false}"#, "autoPauseMemory"),
        (r#"{"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}}"#, "files"),
    ] {
        let fault = check(refused).unwrap_err();
        assert_eq!(fault.code, Code::InvalidRequest);
        assert!(fault.message.contains(name), "{refused}: {}", fault.message);
    }
    let open = serde_json::from_str(r#"{"templateID":"base","secure":false}"#).unwrap();
    assert_eq!(refuse_what_is_not_held(&open, true), Ok(()), "where the operator allows it");
}

#[test]
fn a_key_is_of_plain_characters() {
    let of = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", text.parse().unwrap());
        key(&headers)
    };
    assert_eq!(key(&HeaderMap::new()), Ok(None));
    assert!(of("a-0").unwrap().is_some());
    assert!(of(&"a".repeat(255)).is_ok());
    for wrong in ["", "A", "a b", "a_b", &"a".repeat(256)] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
}
