//! kubia
fn main() {}
