//! What pods and the machine use, measured when somebody asks.
//!
//! Invariant: nothing is measured while nobody asks; a rate that has no earlier measurement waits for a second one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use client::{Body, full};
use http::{HeaderValue, Response, header};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use runtime::{Amount, Usage};
use serde_json::{Value, json};

use crate::act::{Kubelet, lock};
use crate::{machine, rules};

/// How long a rate is measured when there is no earlier measurement to compare with.
const SPAN: Duration = Duration::from_millis(500);
/// Earlier measurements tell a rate only within these ages.
const YOUNGEST: SignedDuration = SignedDuration::from_secs(5);
const OLDEST: SignedDuration = SignedDuration::from_secs(120);

/// All counters at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    at: Timestamp,
    machine_cpu_nanos: u64,
    pods: BTreeMap<String, Usage>,
}

/// Two measurements: the later one's amounts, and rates between the two.
struct Measured {
    first: Sample,
    last: Sample,
    pods: Vec<(Arc<Pod>, String)>,
}

impl Kubelet {
    async fn sample_usage(&self) -> Sample {
        let mut pods = BTreeMap::new();
        for uid in self.parts.runtime.sandboxes().into_keys() {
            // One that goes meanwhile uses nothing.
            if let Ok(usage) = self.parts.runtime.usage(&uid).await {
                pods.insert(uid, usage);
            }
        }
        Sample { at: self.parts.clock.now(), machine_cpu_nanos: machine::cpu_nanos(), pods }
    }

    async fn measured(&self) -> Measured {
        let now = self.parts.clock.now();
        let known = lock(&self.usage).clone().filter(|known| {
            let age = now.duration_since(known.at);
            age >= YOUNGEST && age <= OLDEST
        });
        let first = match known {
            Some(known) => known,
            None => {
                let first = self.sample_usage().await;
                tokio::time::sleep(SPAN).await;
                first
            }
        };
        let last = self.sample_usage().await;
        *lock(&self.usage) = Some(last.clone());
        let pods = last.pods.keys().filter_map(|uid| Some((self.pod(uid)?, uid.clone()))).collect();
        Measured { first, last, pods }
    }

    /// The paths under which kubelets tell of use.
    pub(crate) async fn answer_usage(&self, path: &[&str]) -> Option<Response<Body>> {
        let text = |text: String, kind| {
            let mut response = Response::new(full(text));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        };
        let json = |value: Value| text(value.to_string(), "application/json");
        Some(match path {
            ["stats", "summary"] => json(self.summary().await),
            ["metrics.k8s.io", "nodes"] => json(self.measured().await.node(&self.parts.node_name)),
            ["metrics.k8s.io", "pods"] => json(self.measured().await.pods()),
            ["metrics"] => text(self.own_metrics(), "text/plain; version=0.0.4"),
            ["metrics", "resource" | "cadvisor"] => {
                text(self.sample_usage().await.exposition(self), "text/plain; version=0.0.4")
            }
            _ => return None,
        })
    }

    fn own_metrics(&self) -> String {
        let sandboxes = self.parts.runtime.sandboxes();
        let states = sandboxes.values().flat_map(|sandbox| &sandbox.containers);
        let running = states.filter(|state| matches!(state.phase, runtime::Phase::Running { .. })).count();
        format!(
            "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {running}\n",
            sandboxes.values().filter(|sandbox| sandbox.alive).count()
        )
    }

    /// Kubernetes' Summary: node, pods, containers, with what they have on the disk.
    async fn summary(&self) -> Value {
        let measured = self.measured().await;
        let time = measured.last.at.to_string();
        let memory = machine::memory();
        let disk = crate::pressure::Amount::of_disk(&self.parts.pods_dir);
        let mut pods = Vec::new();
        for (pod, uid) in &measured.pods {
            let disk = self.disk_use(pod, uid).await;
            let state = self.parts.runtime.sandbox(uid);
            let network = state.as_ref().and_then(|state| machine::traffic(state.shim_pid));
            let usage = &measured.last.pods[uid];
            let started = |name: &str| {
                let states = state.iter().flat_map(|state| &state.containers);
                let latest = states.filter(|state| state.name == name).max_by_key(|state| state.attempt);
                latest.map(|latest| latest.started_at.to_string())
            };
            let containers = usage.containers.iter().map(|(name, amount)| {
                let mut told = told(amount, measured.cores(uid, Some(name)), &time);
                told["name"] = name.clone().into();
                told["startTime"] = started(name).into();
                let of = |of: &BTreeMap<String, u64>| json!({ "time": time, "usedBytes": of.get(name).copied().unwrap_or(0) });
                told["rootfs"] = of(&disk.written);
                told["logs"] = of(&disk.logs);
                told
            });
            let containers: Vec<Value> = containers.collect();
            let volumes: Vec<Value> = disk
                .volumes
                .iter()
                .map(|(name, used)| json!({ "name": name, "time": time, "usedBytes": used }))
                .collect();
            let mut told = told(&usage.total, measured.cores(uid, None), &time);
            told["podRef"] =
                json!({ "name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": uid });
            told["startTime"] = state.as_ref().map(|state| state.created_at.to_string()).into();
            told["containers"] = containers.into();
            told["volume"] = volumes.into();
            told["ephemeral-storage"] = json!({ "time": time, "usedBytes": disk.total() });
            told["process_stats"] = json!({ "process_count": usage.total.pids });
            if let Some((received, sent)) = network {
                let one = json!({ "name": "eth0", "rxBytes": received, "txBytes": sent });
                told["network"] = json!({ "time": time, "name": "eth0", "rxBytes": received, "txBytes": sent, "interfaces": [one] });
            }
            pods.push(told);
        }
        let pids = machine::pids();
        json!({
            "node": {
                "nodeName": self.parts.node_name,
                "cpu": { "time": time, "usageNanoCores": measured.machine_cores(), "usageCoreNanoSeconds": measured.last.machine_cpu_nanos },
                "memory": { "time": time, "availableBytes": memory.left, "usageBytes": memory.all - memory.left, "workingSetBytes": memory.all - memory.left },
                "fs": { "time": time, "availableBytes": disk.left, "capacityBytes": disk.all, "usedBytes": disk.all - disk.left },
                "rlimit": { "time": time, "maxpid": pids.all, "curproc": pids.all - pids.left },
            },
            "pods": pods,
        })
    }
}

/// CPU and memory in the Summary's words.
fn told(amount: &Amount, cores: u64, time: &str) -> Value {
    json!({
        "cpu": { "time": time, "usageNanoCores": cores, "usageCoreNanoSeconds": amount.cpu_nanos },
        "memory": { "time": time, "usageBytes": amount.memory_bytes, "workingSetBytes": amount.memory_working_set_bytes },
    })
}

impl Measured {
    fn span(&self) -> SignedDuration {
        self.last.at.duration_since(self.first.at)
    }

    /// Billionths of a core between the two measurements. A counter that began anew counts from nothing.
    fn rate(&self, first: u64, last: u64) -> u64 {
        let nanos = u128::try_from(self.span().as_nanos()).unwrap_or(0).max(1);
        let used = if last >= first { last - first } else { last };
        u64::try_from(u128::from(used) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    }

    fn machine_cores(&self) -> u64 {
        self.rate(self.first.machine_cpu_nanos, self.last.machine_cpu_nanos)
    }

    /// Of a container, or of the whole pod.
    fn cores(&self, uid: &str, container: Option<&str>) -> u64 {
        let counter = |sample: &Sample| {
            let usage = sample.pods.get(uid)?;
            Some(match container {
                Some(name) => usage.containers.get(name)?.cpu_nanos,
                None => usage.total.cpu_nanos,
            })
        };
        // One that was not there before has used all of it since.
        counter(&self.last).map_or(0, |last| self.rate(counter(&self.first).unwrap_or(0), last))
    }

    fn window(&self) -> String {
        let millis = self.span().as_millis();
        format!("{}.{:03}s", millis / 1000, millis % 1000)
    }

    /// `NodeMetrics`, as one list.
    fn node(&self, name: &str) -> Value {
        let memory = machine::memory();
        json!([{
            "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": { "name": name, "creationTimestamp": whole(self.last.at) },
            "timestamp": whole(self.last.at), "window": self.window(),
            "usage": usage(self.machine_cores(), memory.all - memory.left),
        }])
    }

    /// `PodMetrics`, as one list.
    fn pods(&self) -> Value {
        let of_pod = |(pod, uid): &(Arc<Pod>, String)| {
            let running = &self.last.pods[uid].containers;
            let members = rules::members(pod);
            let counted = members.iter().filter_map(|member| {
                let name = &member.container.name;
                let amount = running.get(name)?;
                let usage = usage(self.cores(uid, Some(name)), amount.memory_working_set_bytes);
                Some(json!({ "name": name, "usage": usage }))
            });
            let containers: Vec<Value> = counted.collect();
            (!containers.is_empty()).then(|| {
                let meta = &pod.metadata;
                json!({
                    "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
                    "metadata": { "name": meta.name, "namespace": meta.namespace, "labels": meta.labels, "creationTimestamp": whole(self.last.at) },
                    "timestamp": whole(self.last.at), "window": self.window(), "containers": containers,
                })
            })
        };
        self.pods.iter().filter_map(of_pod).collect::<Vec<Value>>().into()
    }
}

fn whole(time: Timestamp) -> String {
    crate::status::floor(time).to_string()
}

fn usage(cores: u64, bytes: u64) -> Value {
    json!({ "cpu": format!("{cores}n"), "memory": format!("{}Ki", bytes / 1024) })
}

impl Sample {
    /// In the text form that Prometheus reads.
    fn exposition(&self, kubelet: &Kubelet) -> String {
        let mut rows: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
        let seconds = |nanos: u64| format!("{:.6}", nanos as f64 / 1e9);
        let memory = machine::memory();
        rows.entry("node_cpu_usage_seconds_total")
            .or_default()
            .push((String::new(), seconds(self.machine_cpu_nanos)));
        rows.entry("node_memory_working_set_bytes")
            .or_default()
            .push((String::new(), (memory.all - memory.left).to_string()));
        for (uid, usage) in &self.pods {
            let Some(pod) = kubelet.pod(uid) else { continue };
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            let of_pod =
                format!("namespace={:?},pod={:?}", part(&pod.metadata.namespace), part(&pod.metadata.name));
            let mut row =
                |name, labels: String, value: String| rows.entry(name).or_default().push((labels, value));
            row("pod_cpu_usage_seconds_total", of_pod.clone(), seconds(usage.total.cpu_nanos));
            row(
                "pod_memory_working_set_bytes",
                of_pod.clone(),
                usage.total.memory_working_set_bytes.to_string(),
            );
            row("container_processes", of_pod.clone(), usage.total.pids.to_string());
            let shim = kubelet.parts.runtime.sandbox(uid).map(|sandbox| sandbox.shim_pid);
            if let Some((received, sent)) = shim.and_then(machine::traffic) {
                let labels = format!("interface=\"eth0\",{of_pod}");
                row("container_network_receive_bytes_total", labels.clone(), received.to_string());
                row("container_network_transmit_bytes_total", labels, sent.to_string());
            }
            for (name, amount) in &usage.containers {
                let labels = format!("container={name:?},{of_pod}");
                row("container_cpu_usage_seconds_total", labels.clone(), seconds(amount.cpu_nanos));
                row("container_memory_usage_bytes", labels.clone(), amount.memory_bytes.to_string());
                row(
                    "container_memory_working_set_bytes",
                    labels,
                    amount.memory_working_set_bytes.to_string(),
                );
            }
        }
        let mut text = String::new();
        for (name, lines) in rows {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
            for (labels, value) in lines {
                let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_used_between_two_measurements() {
        let sample = |seconds: i64, nanos: u64| {
            let amount = Amount { cpu_nanos: nanos, ..Amount::default() };
            let usage = Usage { total: amount, containers: [("c".to_owned(), amount)].into() };
            let at = Timestamp::from_second(seconds).expect("a time");
            Sample { at, machine_cpu_nanos: nanos * 2, pods: [("u".to_owned(), usage)].into() }
        };
        let measured =
            Measured { first: sample(10, 1_000_000_000), last: sample(12, 2_000_000_000), pods: Vec::new() };
        assert_eq!(measured.cores("u", Some("c")), 500_000_000);
        assert_eq!(measured.cores("u", None), 500_000_000);
        assert_eq!(measured.machine_cores(), 1_000_000_000);
        assert_eq!(measured.window(), "2.000s");
        let begun_anew =
            Measured { first: sample(10, 9_000_000_000), last: sample(12, 2_000_000_000), pods: Vec::new() };
        assert_eq!(begun_anew.cores("u", Some("c")), 1_000_000_000);
    }
}
