//! Rules that stand in another VirtualService.

use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::yaml;

const HOST: &str = "web.test";

/// A VirtualService of namespace `shop` that others delegate to.
fn delegate(name: &str, rules: &str) -> String {
    yaml::virtual_service(name, "", &[], rules)
        .replace(&format!("{{ name: {name} }}"), &format!("{{ name: {name}, namespace: shop }}"))
        .lines()
        .filter(|line| !line.starts_with("  hosts:") && !line.starts_with("  gateways:"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn answer(name: &str) -> String {
    format!("directResponse: {{ status: 200, body: {{ string: {name} }} }}")
}

const ROOT: &str = "  \
  - name: to-shop
    match: [ { name: shop, uri: { prefix: /shop } } ]
    headers: { response: { set: { x-from: root } } }
    delegate: { name: shop, namespace: shop }
  - match: [ { uri: { prefix: /gone } } ]
    delegate: { name: gone }
  - directResponse: { status: 200, body: { string: rest } }
";

fn start(shop: &str) -> Gateway {
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &[HOST], false)))
        .resource("root.yaml", &yaml::virtual_service("root", "web", &[HOST], ROOT))
        .resource("shop.yaml", &delegate("shop", shop))
        .start()
}

#[test]
fn a_delegates_rules_stand_in_the_place_of_the_root_rule() {
    let shop = format!(
        "  - match: [ {{ uri: {{ prefix: /else }} }} ]\n    {}\n  \
           - name: cart\n    match: [ {{ name: cart, uri: {{ exact: /shop/cart }}, \
                method: {{ exact: GET }} }} ]\n    \
             headers: {{ response: {{ set: {{ x-own: cart }} }} }}\n    {}\n  \
           - {}\n",
        answer("else"),
        answer("cart"),
        answer("shop")
    );
    let gateway = start(&shop);
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    let cart = client.get("/shop/cart");
    assert_eq!((cart.text(), cart.header("x-own")), ("cart".to_owned(), Some("cart")));
    assert_eq!(cart.header("x-from"), None, "what a delegate says of headers is all");
    let shop = client.get("/shop/x");
    assert_eq!((shop.text(), shop.header("x-from")), ("shop".to_owned(), Some("root")));
    assert_eq!(client.get("/else").text(), "rest", "not within what the root matches");
    assert_eq!(
        client.get("/gone").text(),
        "rest",
        "only the rule of a missing delegate is left out"
    );
    let log = gateway.access_log(1);
    assert!(log[0].ends_with(" to-shop-cart.shop-cart"), "{log:#?}");
}

#[test]
fn a_changed_delegate_is_served_at_once() {
    let rule = |name: &str| format!("  - {}\n", answer(name));
    let gateway = start(&rule("old"));
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    assert_eq!(client.get("/shop").text(), "old");
    gateway.write_resource("shop.yaml", &delegate("shop", &rule("new")));
    crate::harness::eventually("the new rule", || client.get("/shop").text() == "new");
}

#[test]
fn a_root_may_delegate_what_an_expression_matches() {
    let root = ROOT.replace("prefix: /shop", "regex: \"/shop-[0-9]+.*\"");
    let shop = format!(
        "  - match: [ {{ uri: {{ prefix: /shop-1/x }} }} ]\n    {}\n  \
           - match: [ {{ method: {{ exact: GET }} }} ]\n    {}\n",
        answer("never"),
        answer("shop")
    );
    let gateway = start(&shop);
    gateway.write_resource("root.yaml", &yaml::virtual_service("root", "web", &[HOST], &root));
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    crate::harness::eventually("the new root", || client.get("/shop-a").text() == "rest");
    assert_eq!(client.get("/shop-1").text(), "shop");
    // Whether a path lies within an expression cannot be told, so such a rule is left out.
    assert_eq!(client.get("/shop-1/x").text(), "shop");
}
