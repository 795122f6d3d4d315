//! `report`: one page that says what evidence says and asks nobody for anything.

mod common;

use std::fs;

use common::*;

#[test]
fn the_page_holds_what_is_known_and_loads_nothing() {
    let model = fixture(MINIATURE);
    let bundle = Bundle::build(&model, &["--topology", "0-2,2-4", "--intent", "a <script> & its \"quotes\""]);
    let page = bundle.path.with_extension("html");
    let render = || {
        succeed(&["report", bundle.str(), "-o", page.to_str().unwrap(), "--quiet"]);
        fs::read_to_string(&page).unwrap()
    };
    let before = render();
    assert!(before.contains("no gate has run on this bundle"));
    bundle.gate(&model, "contract,compile,residency,range-golden");
    let after = render();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(bundle.path.join("anemone.json")).unwrap()).unwrap();
    assert!(after.contains(manifest["contract_hash"].as_str().unwrap()));
    for word in ["range-golden", "layers/00-02", "well-formed", "predicted", "a &#60;script&#62;", "rope.dim", "<svg"] {
        assert!(after.contains(word), "{word} is not on the page");
    }
    // Text from a journal stays text, and no address is ever asked.
    assert!(!after.contains("<script"));
    for word in ["http:", "https:", "src=", "url(", "@import", "<link"] {
        assert!(!after.contains(word), "{word} on the page");
    }
    refuse(&["report", "nowhere", "-o", page.to_str().unwrap()], &["nowhere"]);
}
