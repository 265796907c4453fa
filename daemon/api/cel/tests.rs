//! Expressions and their values.

use serde_json::json;

use super::*;

#[track_caller]
fn value(text: &str) -> Value {
    let object =
        json!({ "n": 3, "list": [1, 2, 3], "text": "hello", "map": { "a": 1 }, "none": null, "half": 0.5 });
    let program = Program::compile(text, &["self"]).unwrap_or_else(|error| panic!("{text}: {error}"));
    let found = program.evaluate(&[("self", super::json(&object))], &mut EXPRESSION_COST.clone());
    found.map_or_else(|error| format!("error: {error}").into(), |value| value.to_json())
}

#[test]
fn expressions_have_the_values_that_the_language_gives_them() {
    for (text, wanted) in [
        ("1 + 2 * 3 - 4 / 2 % 3", json!(5)),
        ("self.n > 2 && self.text.startsWith('he')", json!(true)),
        ("self.missing == 1 || self.n == 3", json!(true)),
        ("self.missing == 1 && self.n == 4", json!(false)),
        ("has(self.map.a) && !has(self.map.b)", json!(true)),
        (
            "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x == 3)",
            json!(true),
        ),
        ("self.list.filter(x, x > 1).map(x, x * 2)", json!([4, 6])),
        ("self.list.map(x, x > 1, x + 1)", json!([3, 4])),
        ("self.map.all(k, k == 'a')", json!(true)),
        ("'a' in self.map && 2 in self.list && !(7 in self.list)", json!(true)),
        ("self.n == 3.0 && self.half < 1", json!(true)),
        ("size(self.text) == 5 && self.list.size() == 3", json!(true)),
        ("self.n > 2 ? 'more' : 'less'", json!("more")),
        ("'a-b-c'.split('-').join('+')", json!("a+b+c")),
        ("'hello'.matches('^h.*o$') && 'x'.matches('[a-z]')", json!(true)),
        ("string(self.n) + r'\\n' + \"\\u0041\"", json!("3\\nA")),
        ("duration('1h30m') > duration('89m')", json!(true)),
        ("timestamp('2026-01-02T03:04:05Z').getFullYear()", json!(2026)),
        ("quantity('1Gi').isGreaterThan(quantity('1000Mi'))", json!(true)),
        ("self.?missing.orValue('none')", json!("none")),
        ("self.?map.?a.orValue(7)", json!(1)),
        ("sets.contains([1, 2, 3], [2]) && sets.intersects([1], [1, 2])", json!(true)),
        ("[3, 1, 2].max() + [3, 1, 2].min() + [1, 2].sum()", json!(7)),
        ("cel.bind(x, self.n + 1, x * x)", json!(16)),
        ("type(self.n) == int && type('') == string", json!(true)),
        ("{'a': [1, {'b': null}]} == {'a': [1, {'b': null}]}", json!(true)),
        ("'éa'.size() == 2 && 'abc'.substring(1, 2) == 'b' && 'abc'.indexOf('c') == 2", json!(true)),
        ("dyn(1) != 'x' && null == self.none", json!(true)),
        ("-9223372036854775808 < 0 && 7u < 8u", json!(true)),
        ("self.missing", json!("error: no such key: missing")),
        ("1 / 0", json!("error: division by zero")),
        ("9223372036854775807 + 1", json!("error: integer overflow")),
        ("'a' + 1", json!("error: no such overload: string + int")),
    ] {
        assert_eq!(value(text), wanted, "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_place() {
    for (text, wanted) in [
        ("self.", "1:6"),
        ("other == 1", "undeclared reference to 'other'"),
        ("self.nope()", "undeclared reference to 'nope'"),
        ("self ==", "unexpected end of input"),
        ("'open", "invalid string"),
        ("1 # 2", "token recognition error at: '#'"),
        ("", "unexpected end of input"),
    ] {
        let error = Program::compile(text, &["self"]).expect_err(text).to_string();
        assert!(error.starts_with("compilation failed") && error.contains(wanted), "{text}: {error}");
    }
    assert!(Program::compile(&"(".repeat(5000), &[]).is_err());
    assert!(Program::compile(&"!".repeat(5000), &[]).is_err());
    assert!(Program::compile(&"-".repeat(60_000), &[]).is_err());
    for link in [" + 1", " == 1", ".size()", "[0]", " ? 1 : 1"] {
        let error = Program::compile(&format!("1{}", link.repeat(6000)), &[]).expect_err(link).to_string();
        assert!(error.contains("in a row") || error.contains("too deeply"), "{link}: {error}");
        // The tallest tree that is read can be walked.
        let tall = Program::compile(&format!("1{}", link.repeat(45)), &[]).expect(link);
        let _ = tall.evaluate(&[], &mut EXPRESSION_COST.clone());
    }
    assert_eq!(value(&format!("1{}", " + 1".repeat(240))), 241);
    assert_eq!(value(&format!("self.n == 3{}", " && self.n > 2 && self.list[0] == 1".repeat(1000))), true);
    assert_eq!(value(&format!("self.n == 4{} || true", " || self.n < 2".repeat(1000))), true);
}

#[test]
fn an_expression_that_costs_too_much_ends() {
    let list: Value = (0..2000).collect();
    let program = Program::compile("self.all(a, self.all(b, self.all(c, a + b + c >= 0)))", &["self"])
        .expect("compiles");
    let outcome = program.holds(&[("self", super::json(&list))], &mut EXPRESSION_COST.clone());
    assert_eq!(outcome, Err(CelError::TooExpensive));
}

proptest::proptest! {
    #[test]
    fn any_text_is_an_expression_or_an_error_and_never_a_panic(text in "[ -~]{0,40}") {
        if let Ok(program) = Program::compile(&text, &["self"]) {
            // Whatever it says, it ends.
            let _ = program.evaluate(&[("self", super::json(&Value::Null))], &mut 10_000);
        }
    }
}
