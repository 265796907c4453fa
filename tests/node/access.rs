//! Who may do what: tokens, roles, and the way from a pod to the API.

use super::demo::WAITER;
use super::machine::processes_of;
use super::node::{Node, PATIENCE, Said, run, until};

const ROLE: &str = "\
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [\"\"], resources: [pods], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: default}
";

impl Node {
    /// The CA's certificate in a file of its own.
    fn ca(&self) -> String {
        let path = self.path("ca.crt");
        let pem = self.kubectl(&[
            "config",
            "view",
            "--raw",
            "-o",
            "jsonpath={.clusters[0].cluster.certificate-authority-data}",
        ]);
        use base64::Engine;
        let pem = base64::engine::general_purpose::STANDARD.decode(pem).unwrap();
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// kubectl with nothing but a token.
    fn with_token(&self, token: &str, args: &[&str]) -> Said {
        let (server, ca) = (format!("https://127.0.0.1:{}", self.api), self.ca());
        let head =
            ["--kubeconfig=/dev/null", "--server", &server, "--certificate-authority", &ca, "--token", token];
        run("kubectl", &[&head[..], args].concat())
    }
}

#[test]
fn a_token_may_what_its_roles_say() {
    let node = Node::empty();
    node.kubectl_with(&["create", "-f", "-"], ROLE);
    let token = node.kubectl(&["create", "token", "reader"]);
    let token = token.trim();
    let who = node.with_token(token, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(who.out, "system:serviceaccount:default:reader", "{}", who.err);
    assert_eq!(node.with_token(token, &["get", "pods"]).code, 0);
    let refused = node.with_token(token, &["get", "secrets"]);
    let wanted = "Error from server (Forbidden): secrets is forbidden: User \"system:serviceaccount:default:reader\" \
                  cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"";
    assert_eq!((refused.code, refused.err.trim()), (1, wanted));
    for (args, answer) in
        [(["auth", "can-i", "list", "pods"], "yes"), (["auth", "can-i", "delete", "pods"], "no")]
    {
        assert_eq!(node.with_token(token, &args).out.trim(), answer, "{args:?}");
        let asked = [&args[..], &["--as=system:serviceaccount:default:reader"]].concat();
        assert_eq!(node.try_kubectl(&asked).out.trim(), answer, "{asked:?}");
    }
    let list = node.with_token(token, &["auth", "can-i", "--list"]).out;
    assert!(list.contains("selfsubjectaccessreviews.authorization.k8s.io"), "{list}");
    let forged = node.with_token(&format!("{token}x"), &["get", "pods"]);
    assert!(
        forged.err.contains("must be logged in") || forged.err.contains("Unauthorized"),
        "{}",
        forged.err
    );
    node.kubectl(&["delete", "serviceaccount", "reader"]);
    assert_ne!(node.with_token(token, &["get", "pods"]).code, 0);
}

#[test]
fn pods_reach_the_api_at_its_service() {
    let node = Node::empty();
    node.load_busybox();
    node.save("waiter.yaml", WAITER);
    node.kubectl_wait_running("waiter");
    let address = node.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]);
    let version = format!("https://{address}/version");
    // From this machine, with the certificate looked at.
    let said = run("curl", &["--silent", "--show-error", "--cacert", &node.ca(), &version]);
    assert!(said.out.contains("gitVersion"), "{}", said.all());
    // From the pod's place in the network, with the machine's own curl.
    let uid = node.object("pod", "waiter")["metadata"]["uid"].as_str().unwrap().to_owned();
    let pid = processes_of(&uid).pop().unwrap().to_string();
    until("the pod reads the version", PATIENCE, || {
        let curl = ["curl", "--silent", "--show-error", "--max-time", "5", "--cacert", &node.ca(), &version];
        let said = run("nsenter", &[&["--net", "--target", &pid, "--"], &curl[..]].concat());
        if said.out.contains("gitVersion") { Ok(()) } else { Err(said.all()) }
    });
}
