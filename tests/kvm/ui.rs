//! The page in a browser: what it shows, by keyboard alone, and on a phone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use skerry_tests::browser::{Browser, ENTER, TAB};
use skerry_tests::host::Host;
use skerry_tests::{Site, given};

/// A browser on a busy machine takes its time.
const LONG: Duration = Duration::from_secs(90);
/// Tabs until everything on a page has been reached.
const MOST: usize = 40;

fn workloads(site: &Site) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"run=blk-verify:0:1 off=wait-power-button\"}}\n\
         \x20 disks: [{{name: data, size: 4Mi}}]\n\
         ---\n\
         apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: helper}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"n=0; while true; do n=$((n+1)); echo hello, the ${{n}}th time; sleep 1; done\"]\n\
         \x20 memory: 32Mi\n",
        given("SKERRY_PAYLOAD").display(),
        site.layout().display()
    )
}

/// Where pictures go: they are kept if somebody wants them.
fn pictures(host: &Host) -> PathBuf {
    match std::env::var_os("SKERRY_SCREENSHOTS") {
        Some(folder) => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(folder),
        None => host.path(""),
    }
}

/// Goes from one thing to the next by keyboard until one is reached of which `script` says so.
fn tab_to(browser: &Browser, what: &str, script: &str) {
    let reached = (0..MOST).any(|_| {
        browser.keys(TAB);
        browser.script(&format!(
            "const it = document.activeElement; return {script};"
        )) == true
    });
    assert!(reached, "{what} is not reached by keyboard");
}

/// Whether all fits the page's width.
fn fits(browser: &Browser) {
    let too_wide = browser.script(
        "const width = document.documentElement.clientWidth; \
         const wide = [...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > width + 1 \
         && !it.closest('.skip, thead')).map(it => it.outerHTML.slice(0, 80)); \
         return document.documentElement.scrollWidth > width ? ['scrolls', ...wide] : [];",
    );
    assert_eq!(too_wide, serde_json::json!([]));
}

#[test]
fn the_page_shows_workloads_their_logs_and_consoles_by_keyboard_and_fits_a_phone() {
    let (site, host) = (Site::new(), Host::start());
    let manifest = host.manifest(&workloads(&site));
    host.must(&["apply", "--wait", "-f", &manifest]);
    let token = host.must(&["token", "create", "page"]);
    let pictures = pictures(&host);
    let browser = Browser::start();
    browser.go(&format!("https://{}/ui", host.address()));
    // Whoever is not known is asked for a token, which the keyboard is at.
    browser.until(
        "a token is asked for",
        LONG,
        "return Boolean(document.getElementById('token-dialog')?.open)",
    );
    browser.keys(&format!("{}{ENTER}", token.trim()));
    browser.until(
        "workloads appear",
        LONG,
        "const text = document.getElementById('workloads').innerText; \
         return text.includes('web') && text.includes('helper') && text.includes('Running')",
    );
    browser.until(
        "charts are drawn",
        LONG,
        "return document.querySelector('#workloads polyline').getAttribute('points').split(' ').length > 7",
    );
    browser.resize(1100, 620, false);
    browser.picture(&pictures.join("ui.png"));
    // A filter leaves what has its words.
    browser.script("const it = document.getElementById('filter'); it.value = 'help'; it.dispatchEvent(new Event('input'));");
    let shown = browser.script("return document.querySelectorAll('#workloads tbody tr').length");
    assert_eq!(shown, 1);
    browser.script("const it = document.getElementById('filter'); it.value = ''; it.dispatchEvent(new Event('input'));");
    // From the page's beginning to a workload, and into its log.
    browser.script("document.activeElement.blur(); window.scrollTo(0, 0);");
    tab_to(&browser, "the way past the head", "it.className === 'skip'");
    tab_to(
        &browser,
        "a workload",
        "it.tagName === 'A' && it.textContent === 'helper'",
    );
    let ring = browser.script("return getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(ring, "solid");
    browser.keys(ENTER);
    browser.until(
        "its log is shown, and goes on",
        LONG,
        "return /the 1th time[^]*the [3-9]th time/.test(document.querySelector('#panel pre')?.textContent || '')",
    );
    // A VM's console.
    browser.script("location.hash = '#/microvm/default/web'");
    browser.until(
        "the VM is shown",
        LONG,
        "return Boolean(document.getElementById('tab-console'))",
    );
    browser.script("document.getElementById('tab-log').focus()");
    tab_to(&browser, "the console", "it.id === 'tab-console'");
    browser.keys(ENTER);
    browser.until(
        "its console is shown, and open",
        LONG,
        "const text = document.querySelector('#panel pre')?.textContent || ''; \
         return Boolean(document.getElementById('typed')) && text.length > 0 && !text.includes('closed')",
    );
    // On a phone.
    browser.resize(390, 844, true);
    fits(&browser);
    browser.script("location.hash = '#/'");
    browser.until(
        "all workloads are shown",
        LONG,
        "return !document.getElementById('overview').hidden",
    );
    fits(&browser);
    browser.picture(&pictures.join("ui-phone.png"));
    let complaints = browser.complaints();
    let bad =
        |line: &&String| line.contains("Content Security Policy") || line.contains("Uncaught");
    assert_eq!(complaints.iter().find(bad), None, "{complaints:?}");
    drop(browser);
    host.must(&["delete", "-f", &manifest, "--grace", "0"]);
}

#[test]
fn a_browser_on_another_sites_page_may_ask_nothing_and_enter_nothing() {
    let host = Host::start();
    let ask = |headers: &str| {
        use std::io::{Read, Write};
        let path = host.state().join("api.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(path).expect("it listens");
        let request = format!("GET {headers}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let hosts = "/apis/skerry.io/v1/hosts HTTP/1.1\r\nHost: edge:6443";
    let good = ask(&format!("{hosts}\r\nOrigin: https://edge:6443"));
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
    for foreign in [
        "Origin: https://evil",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        let refused = ask(&format!("{hosts}\r\n{foreign}"));
        assert!(refused.starts_with("HTTP/1.1 403"), "{foreign}: {refused}");
    }
    let page = ask("/ui/ HTTP/1.1\r\nHost: edge:6443");
    assert!(
        page.to_lowercase()
            .contains("content-security-policy: default-src 'none'"),
        "{page}"
    );
    // Whoever may only look enters no console.
    let token = host.must(&["token", "create", "looks", "--read-only"]);
    let console = format!(
        "/apis/skerry.io/v1/namespaces/default/microvms/web/console HTTP/1.1\r\nHost: edge:6443\r\n\
         Sec-WebSocket-Protocol: skerry.console.v1, skerry.token.{}\r\nUpgrade: websocket",
        token.trim()
    );
    let refused = ask(&console);
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("looking alone"),
        "{refused}"
    );
}
