//! The page's files, as they are in the program.

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Their names below `/ui`, their types, and what they are.
pub const FILES: [(&str, &str, &str); 8] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("page/index.html"),
    ),
    (
        "/style.css",
        "text/css; charset=utf-8",
        include_str!("page/style.css"),
    ),
    ("/app.js", SCRIPT, include_str!("page/app.js")),
    ("/api.js", SCRIPT, include_str!("page/api.js")),
    ("/rates.js", SCRIPT, include_str!("page/rates.js")),
    ("/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/workload.js", SCRIPT, include_str!("page/workload.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];
