//! How many templates there can be.

mod common;

use common::{NOW, world};
use rf_store::{NewTemplate, StoreError};
use rf_types::TemplateConfig;

#[test]
fn among_the_most_templates_one_is_replaced_and_a_new_one_refused() {
    let w = world();
    let layers = vec!["sha256:aa".to_owned()];
    let config = TemplateConfig::default();
    let put = |name: &str| {
        let name = name.parse().unwrap();
        let new = NewTemplate { name: &name, layers: &layers, source: "x", digest: "sha256:cc", config: &config };
        w.store.template_put(&w.operator, &new, NOW)
    };
    for n in 0..10_000 {
        put(&format!("t{n}")).unwrap();
    }
    assert!(matches!(put("another"), Err(StoreError::TooMany { what: "templates", max: 10_000 })));
    put("t7").unwrap();
    w.store.template_remove(&w.operator, &"t9".parse().unwrap()).unwrap();
    put("another").unwrap();
    assert!(put("t9").is_err());
}
