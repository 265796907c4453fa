// What a program does with the JavaScript client `@kubernetes/client-node` against a node: create, watch, patch, exec, delete.
//
// Usage: node client.mjs KUBECONFIG IMAGE, with the package in NODE_PATH's place. Prints one line per thing that held.

import assert from 'node:assert';
import { createRequire } from 'node:module';
import { Writable } from 'node:stream';

const k8s = createRequire(process.env.CLIENT_NODE + '/')('@kubernetes/client-node');
const [kubeconfig, image] = process.argv.slice(2);
const config = new k8s.KubeConfig();
config.loadFromFile(kubeconfig);
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const namespace = 'javascript';
const held = (what) => console.log('held:', what);

await core.createNamespace({ body: { metadata: { name: namespace } } });
const seen = [];
const gone = new Promise((resolve, reject) => {
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const told = (type, object) => {
        seen.push(type);
        if (type === 'DELETED' && object.metadata.name === 'cm') resolve();
    };
    new k8s.Watch(config).watch(path, { labelSelector: 'who=me' }, told, (error) => error && reject(error)).catch(reject);
});
await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'cm', labels: { who: 'me' } }, data: { k: '1' } } });
await core.patchNamespacedConfigMap(
    { namespace, name: 'cm', body: { data: { k: '2' } } },
    k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch),
);
assert.equal((await core.readNamespacedConfigMap({ namespace, name: 'cm' })).data.k, '2');
await core.deleteNamespacedConfigMap({ namespace, name: 'cm' });
await gone;
assert.equal(seen[0], 'ADDED');
held('create, patch, watch, delete');

const labels = { app: 'web' };
const container = { name: 'c', image, imagePullPolicy: 'Never', command: ['sh', '-c', 'echo hello; sleep 1000'] };
await apps.createNamespacedDeployment({
    namespace,
    body: {
        metadata: { name: 'web' },
        spec: {
            replicas: 1,
            selector: { matchLabels: labels },
            template: { metadata: { labels }, spec: { terminationGracePeriodSeconds: 0, containers: [container] } },
        },
    },
});
// An informer keeps a list current until what it waits for is there.
const list = () => core.listNamespacedPod({ namespace, labelSelector: 'app=web' });
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/pods`, list, 'app=web');
const pod = await new Promise((resolve, reject) => {
    const look = (one) => one.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True') && resolve(one);
    informer.on('add', look);
    informer.on('update', look);
    informer.on('error', reject);
    informer.start().catch(reject);
});
await informer.stop();
held('deployment, informer');

let out = '';
const sink = new Writable({ write(chunk, _, done) { out += chunk; done(); } });
const status = await new Promise((resolve, reject) => {
    new k8s.Exec(config)
        .exec(namespace, pod.metadata.name, 'c', ['sh', '-c', 'echo out; exit 3'], sink, process.stderr, null, false, resolve)
        .catch(reject);
});
assert.equal(status.details.causes[0].message, '3');
assert.equal(out, 'out\n');
// The first words may come a moment after the start.
let log = '';
for (let at = 0; at < 100 && log === ''; at += 1) {
    log = await core.readNamespacedPodLog({ namespace, name: pod.metadata.name });
}
assert.equal(log, 'hello\n');
held('exec, exit code, logs');

const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const applied = await objects.patch(
    { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'applied', namespace }, data: { a: '1' } },
    undefined, undefined, 'js', true, k8s.PatchStrategy.ServerSideApply,
);
assert.equal(applied.metadata.managedFields[0].manager, 'js');
held('server-side apply');

await core.deleteNamespace({ name: namespace });
held('namespace goes');
process.exit(0);
