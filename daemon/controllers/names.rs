//! Names that follow from what they are for, so that doing it twice is the same as once.
//!
//! Invariant: nothing here is random: the same owner and number always give the same name.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// The characters Kubernetes uses in generated names: no vowels, nothing that looks like something else.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
/// As the API server cuts `metadata.generateName`: what is longer than a label may be loses its end.
const LONGEST: usize = 63;

/// The label that tells the ReplicaSets of one Deployment apart.
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";

/// Names `<base>-<5 characters>` for one owner, the lowest free number first.
pub(crate) struct Names<'a> {
    base: &'a str,
    seed: &'a str,
    next: u64,
    given: BTreeSet<String>,
    taken: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    /// Names below `base` that none of `taken` has. `seed` is what makes the owner unique: its uid.
    pub(crate) fn new(base: &'a str, seed: &'a str, taken: impl IntoIterator<Item = &'a str>) -> Names<'a> {
        Names { base, seed, next: 0, given: BTreeSet::new(), taken: taken.into_iter().collect() }
    }
}

impl Iterator for Names<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let n = self.next;
            self.next += 1;
            let name = name(self.base, self.seed, n);
            // A later number may give the name of an earlier one: then the earlier has it.
            if self.given.insert(name.clone()) && !self.taken.contains(name.as_str()) {
                return Some(name);
            }
        }
    }
}

fn name(base: &str, seed: &str, n: u64) -> String {
    let end = base.len().min(LONGEST - SUFFIX - 1);
    let cut = (0..=end).rev().find(|at| base.is_char_boundary(*at)).unwrap_or(0);
    format!("{}-{}", &base[..cut], suffix(seed, n))
}

fn suffix(seed: &str, n: u64) -> String {
    let mut rest = mixed(hash(seed.as_bytes()) ^ mixed(n.wrapping_add(1)));
    (0..SUFFIX)
        .map(|_| {
            let at = rest % ALPHABET.len() as u64;
            rest /= ALPHABET.len() as u64;
            char::from(ALPHABET[at as usize])
        })
        .collect()
}

/// The value of `pod-template-hash`: what a template is, whatever the label itself says in it.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let text = serde_json::to_string(&without_hash(template)).expect("a template can be written as JSON");
    let mut hash = hash(text.as_bytes());
    if collisions > 0 {
        hash = mixed(hash ^ collisions.unsigned_abs() as u64);
    }
    // As Kubernetes: 32 bits in decimal, each digit written with the alphabet of names.
    (((hash >> 32) ^ hash) as u32)
        .to_string()
        .bytes()
        .map(|digit| char::from(ALPHABET[digit as usize % ALPHABET.len()]))
        .collect()
}

/// A template without the label that Deployments add to it.
pub(crate) fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata
        && let Some(labels) = &mut meta.labels
    {
        labels.remove(TEMPLATE_HASH);
        if labels.is_empty() {
            meta.labels = None;
        }
    }
    template
}

/// FNV-1a.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The end of splitmix64: every bit of the input moves every bit of the output.
fn mixed(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_name_is_given_first_and_none_twice() {
        let first: Vec<String> = Names::new("web", "uid", []).take(200).collect();
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 200);
        let again: Vec<String> =
            Names::new("web", "uid", [first[0].as_str(), first[2].as_str()]).take(2).collect();
        assert_eq!(again, [first[1].clone(), first[3].clone()]);
        assert_ne!(Names::new("web", "other", []).next(), Names::new("web", "uid", []).next());
    }

    #[test]
    fn a_long_base_is_cut_to_what_a_label_can_hold() {
        let base = "a".repeat(80);
        assert_eq!(Names::new(&base, "uid", []).next().unwrap().len(), 63);
    }

    #[test]
    fn the_label_itself_does_not_change_the_hash_of_a_template() {
        let plain: PodTemplateSpec =
            serde_json::from_value(serde_json::json!({"metadata": {"labels": {"app": "a"}}})).unwrap();
        let marked: PodTemplateSpec = serde_json::from_value(
            serde_json::json!({"metadata": {"labels": {"app": "a", "pod-template-hash": "x"}}}),
        )
        .unwrap();
        assert_eq!(template_hash(&plain, 0), template_hash(&marked, 0));
        assert_ne!(template_hash(&plain, 0), template_hash(&plain, 1));
    }
}
