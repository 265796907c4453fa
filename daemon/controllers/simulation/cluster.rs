//! The controllers of the cluster itself, under the same faults.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::*;

#[tokio::test]
async fn every_namespace_gets_its_account_and_certificate_and_gets_them_back() {
    let mut world = World::new(HARD).await;
    let has = |namespace: &'static str| {
        move |maps: &[Arc<ConfigMap>]| {
            maps.iter().any(|map| {
                map.metadata.namespace.as_deref() == Some(namespace)
                    && map.metadata.name.as_deref() == Some("kube-root-ca.crt")
                    && map.data.as_ref().is_some_and(|data| data["ca.crt"] == CERTIFICATE)
            })
        }
    };
    let account = |namespace: &'static str| {
        move |all: &[Arc<ServiceAccount>]| {
            all.iter().any(|one| {
                one.metadata.namespace.as_deref() == Some(namespace)
                    && one.metadata.name.as_deref() == Some("default")
                    && one.metadata.deletion_timestamp.is_none()
            })
        }
    };
    world.until("the certificate in kube-system", has("kube-system")).await;
    world.restart().await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let shop = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces.create(&PostParams::default(), &shop).await.unwrap();
    world.until("the certificate in shop", has("shop")).await;
    world.until("the account in shop", account("shop")).await;
    let maps: Api<ConfigMap> = world.api("shop");
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    let empty = Patch::Merge(json!({"data": {"ca.crt": "of someone else"}}));
    world
        .api::<ConfigMap>("default")
        .patch("kube-root-ca.crt", &PatchParams::default(), &empty)
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = world.api("shop");
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    world.until("the certificate again", move |maps| has("shop")(maps) && has("default")(maps)).await;
    world.until("the account again", account("shop")).await;
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    world
        .until::<Namespace>("shop is gone", |all| {
            all.iter().all(|one| one.metadata.name.as_deref() != Some("shop"))
        })
        .await;
    world.quiet().await;
}
