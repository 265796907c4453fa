//! Dockerfiles and names of strangers, damaged in every way that a second allows.

use super::script::{parse, parse_step};

#[path = "../../../tests/damage.rs"]
mod damaged;

#[test]
fn damaged_scripts_and_references_are_read_or_refused() {
    let scripts = [
        "# syntax=docker/dockerfile:1\n# escape=\\\nARG V=1\nFROM --platform=$P busybox:${V} as Base\nRUN a && \\\n  b\nCOPY --from=base x /y/\nCMD [\"a\", \"b\"]\n",
        "FROM a\nRUN <<-'EOF' cat > /x\n\thi $A\nEOF\nCOPY <<A <<B /d/\n1\nA\n2\nB\nONBUILD RUN x\nENV a=\"b c\" d=e\n",
    ];
    let words = ["<<", "<<EOF", "EOF\n", "\\\n", "--", "FROM ", "AS ", "RUN ", "${", "[\"", "`"];
    damaged::each_text(&scripts, &words, 15_000, |text| {
        let Ok(script) = parse(text) else { return };
        for step in script.stages.iter().flat_map(|stage| &stage.steps) {
            let _ = step.list();
            // What is told of a step reads as the same step.
            if step.documents.is_empty() && script.escape == '\\' {
                let again = parse_step(step.line, &step.told());
                assert!(again.is_ok_and(|again| again.name == step.name), "{step:?}");
            }
        }
    });
    let names = [
        "host:5000/a/b-c_d:v1.2",
        "kubia@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "[::1]:5000/x:y",
    ];
    damaged::each_text(&names, &["/", ":", "@", "..", "sha256:", "localhost", "-"], 20_000, |text| {
        let Ok(reference) = text.parse::<crate::Reference>() else { return };
        let again = reference.to_string().parse::<crate::Reference>();
        assert!(again.is_ok_and(|again| again == reference), "{text:?}");
    });
}
