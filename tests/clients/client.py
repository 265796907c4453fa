"""What a program does with the Python client `kubernetes` against a node: create, watch, patch, exec, logs, delete.

Usage: client.py KUBECONFIG IMAGE. The image has a shell. Prints one line per thing that held; ends at the first that did not.
"""

import sys
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

kubeconfig, image = sys.argv[1:]
config.load_kube_config(kubeconfig)
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()
NAMESPACE = "python"


def held(what):
    print("held:", what, flush=True)


def events(list_function, until, **arguments):
    """Events until one is as wanted; the last."""
    for event in watch.Watch().stream(list_function, NAMESPACE, timeout_seconds=60, **arguments):
        if until(event):
            return event
    raise SystemExit(f"no event of {list_function.__name__} was as wanted")


version = client.VersionApi().get_code()
assert version.major == "1" and int(version.minor) >= 36, version
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
held("version, namespace")

# A watch that is open before the object is made sees it made, changed and deleted.
seen = []


def look():
    for event in watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, timeout_seconds=30,
                                      label_selector="who=me"):
        seen.append((event["type"], (event["object"].data or {}).get("k")))
        if event["type"] == "DELETED":
            return


looker = threading.Thread(target=look)
looker.start()
labelled = client.V1ObjectMeta(name="cm", labels={"who": "me"})
core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=labelled, data={"k": "1"}))
core.patch_namespaced_config_map("cm", NAMESPACE, {"data": {"k": "2"}})
core.patch_namespaced_config_map("cm", NAMESPACE, [{"op": "replace", "path": "/data/k", "value": "3"}])
read = core.read_namespaced_config_map("cm", NAMESPACE)
assert read.data == {"k": "3"}, read
stale = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="cm", resource_version="1"), data={})
try:
    core.replace_namespaced_config_map("cm", NAMESPACE, stale)
    raise SystemExit("a stale update was taken")
except ApiException as error:
    assert error.status == 409, error
core.delete_namespaced_config_map("cm", NAMESPACE)
looker.join()
assert [kind for kind, _ in seen][0] == "ADDED" and seen[-1][0] == "DELETED", seen
held("create, patch, conflict, watch, delete")

container = client.V1Container(name="c", image=image, image_pull_policy="Never",
                               command=["sh", "-c", "echo hello from $WHO; sleep 1000"],
                               env=[client.V1EnvVar(name="WHO", value="python")])
template = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels={"app": "web"}),
    spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0))
spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template)
apps.create_namespaced_deployment(NAMESPACE, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
events(apps.list_namespaced_deployment, lambda event: event["object"].status.available_replicas == 2)
apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 1}})
events(apps.list_namespaced_deployment, lambda event: event["object"].status.replicas == 1)
assert apps.read_namespaced_deployment_scale("web", NAMESPACE).spec.replicas == 1
held("deployment, scale")

pods = core.list_namespaced_pod(NAMESPACE, label_selector="app=web", field_selector="status.phase=Running").items
pod = next(pod for pod in pods if pod.metadata.deletion_timestamp is None).metadata.name
assert core.read_namespaced_pod_log(pod, NAMESPACE) == "hello from python\n"
said = stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=["sh", "-c", "echo out; echo err >&2; exit 3"],
              stdin=False, stdout=True, stderr=True, tty=False, _preload_content=False)
said.run_forever(timeout=30)
assert (said.read_stdout(), said.read_stderr(), said.returncode) == ("out\n", "err\n", 3), said.returncode
talk = stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=["cat"], stdin=True, stdout=True, stderr=True,
              tty=False, _preload_content=False)
talk.write_stdin("echoed\n")
assert talk.readline_stdout(timeout=30) == "echoed"
talk.close()
held("logs, exec, exit code, stdin")

pages, token = [], None
for at in range(5):
    core.create_namespaced_secret(NAMESPACE, client.V1Secret(metadata=client.V1ObjectMeta(name=f"s{at}"), string_data={"a": "b"}))
while True:
    page = core.list_namespaced_secret(NAMESPACE, limit=2, _continue=token)
    pages.append(len(page.items))
    token = page.metadata._continue
    if not token:
        break
assert pages == [2, 2, 1], pages
assert core.read_namespaced_secret("s0", NAMESPACE).data == {"a": "Yg=="}
held("pages")

job = client.V1Job(metadata=client.V1ObjectMeta(name="once"), spec=client.V1JobSpec(template=client.V1PodTemplateSpec(
    spec=client.V1PodSpec(restart_policy="Never", containers=[client.V1Container(
        name="c", image=image, image_pull_policy="Never", command=["true"])]))))
batch.create_namespaced_job(NAMESPACE, job)
events(batch.list_namespaced_job, lambda event: event["object"].status.succeeded == 1)
held("job")

# Objects by discovery, and server-side apply.
finder = dynamic.DynamicClient(client.ApiClient())
maps = finder.resources.get(api_version="v1", kind="ConfigMap")
body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}
applied = maps.server_side_apply(body=body, namespace=NAMESPACE, field_manager="py")
assert applied.metadata.managedFields[0].manager == "py", applied
try:
    maps.server_side_apply(body={**body, "data": {"a": "2"}}, namespace=NAMESPACE, field_manager="other")
    raise SystemExit("a conflict was not told")
except dynamic.exceptions.ConflictError:
    pass
held("discovery, server-side apply")

allowed = client.AuthorizationV1Api().create_self_subject_access_review(client.V1SelfSubjectAccessReview(
    spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=client.V1ResourceAttributes(verb="get", resource="pods"))))
assert allowed.status.allowed, allowed
core.delete_namespace(NAMESPACE)
for event in watch.Watch().stream(core.list_namespace, field_selector=f"metadata.name={NAMESPACE}", timeout_seconds=60):
    if event["type"] == "DELETED":
        break
else:
    raise SystemExit("the namespace stays")
held("access review, namespace goes")
