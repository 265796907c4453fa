//! The fake passes the suite that the real one passes.

use runtime::conformance::{Ground, suite};
use runtime::fake::FakeRuntime;

#[tokio::test]
async fn the_fake_behaves_as_the_suite_says() {
    let ground = Ground { layers: vec!["/layers/busybox".into()], log_dir: "/logs".into() };
    suite(&FakeRuntime::default(), &ground).await;
}
