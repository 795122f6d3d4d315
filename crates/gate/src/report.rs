//! The report: everything that is known of a bundle on one page.
//!
//! The page is one file that asks nobody for anything: its style is in it, its pictures are drawn here as SVG, and it has no
//! script. It shows what evidence says and no more: a verdict with what it was seen on, a chart only where there are figures,
//! and a sentence where there are none.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;

use anemone_bundle::Manifest;
use anemone_bundle::manifest::Shard;
use askama::Template;
use serde_json::Value;

use crate::journal::{self, Entry};
use crate::verdict::{Finding, Verdict};
use crate::{evidence, probe, range_golden, residency};

/// Renders the page of the bundle in `folder`.
///
/// # Errors
/// Where evidence or journal cannot be read.
pub fn render(folder: &Path, manifest: &Manifest) -> io::Result<String> {
    let hash = manifest.hash();
    let findings = evidence::latest(folder, &hash)?;
    let entries = journal::entries(journal::read(&journal::of_bundle(folder))?);
    let page = Page {
        name: &manifest.name,
        hash: &hash,
        contract_hash: &manifest.contract_hash,
        source: format!("{}, {}", manifest.source.file, bytes(manifest.source.bytes)),
        source_hash: &manifest.source.blake3,
        tool: &manifest.tool,
        size: bytes(manifest.files.values().map(|f| f.bytes).sum()),
        calls: manifest.layers.len() + manifest.head.len(),
        tokens: format!("{:?}", manifest.tokens),
        contract: contract_rows(manifest),
        topology: topology(manifest),
        summary: summary(&findings),
        gates: gates(&findings),
        cosines: cosines(manifest, &findings),
        layers: layers(&findings),
        probe: probed(&findings),
        headroom: headroom(&findings),
        placement: placement(&findings),
        timings: timings(&findings),
        entries: &entries,
    };
    page.render().map_err(io::Error::other)
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    name: &'a str,
    hash: &'a str,
    contract_hash: &'a str,
    source: String,
    source_hash: &'a str,
    tool: &'a str,
    size: String,
    calls: usize,
    tokens: String,
    contract: Vec<(String, String)>,
    topology: String,
    summary: Vec<(Verdict, usize)>,
    gates: Vec<Gate>,
    cosines: Option<Chart>,
    layers: Option<Chart>,
    probe: Option<Probe>,
    headroom: Option<Chart>,
    placement: Vec<Placement>,
    timings: Vec<(String, String, String)>,
    entries: &'a [Entry],
}

/// One gate's findings.
struct Gate {
    name: String,
    worst: Verdict,
    seen_on: Vec<String>,
    parts: Vec<Finding>,
}

/// A picture with the same figures as text.
struct Chart {
    svg: String,
    rows: Vec<Vec<String>>,
    note: String,
}

/// What the contract probe tried.
struct Probe {
    verdict: Verdict,
    message: String,
    rows: Vec<Tried>,
}

/// One neighbour of the contract.
struct Tried {
    name: String,
    doubt: String,
    surprise: String,
    better: String,
    prompts: u64,
    judged: bool,
}

/// One package's predicted placement.
struct Placement {
    part: String,
    place: String,
    ane: u64,
    total: u64,
    target: String,
    rules: Vec<PlacementRule>,
}

/// One rule that decided there.
struct PlacementRule {
    rule: String,
    place: String,
    ops: u64,
    confidence: String,
    sources: String,
    says: String,
    against: Vec<String>,
}

/// Bytes for people, in powers of 1000.
fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

fn contract_rows(manifest: &Manifest) -> Vec<(String, String)> {
    // Through the text: there an f32 is the shortest decimal that is it, 1e-5 and not 9.999999747378752e-6.
    let Ok(Value::Object(fields)) = serde_json::from_str(&manifest.contract.to_json()) else { return Vec::new() };
    let mut rows = Vec::new();
    for (name, value) in fields {
        match value {
            Value::Object(inner) => {
                rows.extend(inner.into_iter().map(|(part, v)| (format!("{name}.{part}"), short(&v))))
            }
            value => rows.push((name, short(&value))),
        }
    }
    rows
}

/// A value in a few words: lists of equal numbers are counted, long ones are cut.
fn short(value: &Value) -> String {
    match value {
        Value::Array(all) if all.len() > 8 => match all.windows(2).all(|w| w[0] == w[1]) {
            true => format!("{} times {}", all.len(), all[0]),
            false => format!("{} values, {} to {}", all.len(), all[0], all[all.len() - 1]),
        },
        Value::Array(all) => all.iter().map(Value::to_string).collect::<Vec<_>>().join(", "),
        Value::String(s) => s.clone(),
        Value::Null => "none".into(),
        Value::Object(inner) => inner
            .iter()
            .map(|(k, v)| if k == "kind" { short(v) } else { format!("{k} {}", short(v)) })
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

// ---- pictures

/// Escapes text for SVG; everything else in a picture is a number.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The chain of packages, left to right, a block as wide as its part of the layers or of the vocabulary.
fn topology(manifest: &Manifest) -> String {
    const WIDTH: f64 = 960.0;
    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} 168" role="img" aria-label="The chain of packages">"#);
    let mut row = |y: f64, label: &str, shards: &[Shard], class: &str, unit: &str| {
        let total = shards.last().map_or(1, |s| s.end).max(1) as f64;
        let _ = write!(svg, r#"<text class="label" x="0" y="{}">{label}</text>"#, y - 8.0);
        for shard in shards {
            let (x, w) = (shard.start as f64 / total * WIDTH, shard.range().len() as f64 / total * WIDTH);
            let title = format!("{}: {unit} {} to {}", escaped(&shard.path), shard.start, shard.end);
            let _ = write!(
                svg,
                r#"<g><title>{title}</title><rect class="{class}" x="{:.1}" y="{y}" width="{:.1}" height="44" rx="5"/>"#,
                x + 1.5,
                (w - 3.0).max(1.0)
            );
            // Text where it fits: about eight units a character.
            let text = if class == "layers" {
                format!("{}–{}", shard.start, shard.end)
            } else {
                shard.range().len().to_string()
            };
            if w > text.chars().count() as f64 * 9.0 {
                let _ = write!(
                    svg,
                    r#"<text class="on" x="{:.1}" y="{}" text-anchor="middle">{text}</text>"#,
                    x + w / 2.0,
                    y + 27.0
                );
            }
            svg.push_str("</g>");
        }
    };
    let layers = format!(
        "{} layers in {} packages with state, after the embedding",
        manifest.contract.layers,
        manifest.layers.len()
    );
    row(26.0, &layers, &manifest.layers, "layers", "layers");
    let slices = if manifest.head.len() == 1 { "slice" } else { "slices" };
    let head = format!("{} rows of the head in {} {slices}", manifest.contract.vocab, manifest.head.len());
    row(112.0, &head, &manifest.head, "head", "rows");
    svg.push_str("</svg>");
    svg
}

/// Horizontal bars on a scale of powers of ten, one or two a row, shorter being better.
struct Bars<'a> {
    /// Powers of ten at the left and right edge.
    decades: (i32, i32),
    /// What the axis says at a power of ten.
    tick: &'a dyn Fn(i32) -> String,
}

impl Bars<'_> {
    fn draw(&self, rows: &[(String, Vec<(&str, f64)>)], alt: &str) -> String {
        const LABEL: f64 = 190.0;
        const WIDTH: f64 = 960.0;
        let (low, high) = self.decades;
        let per_row = rows.iter().map(|r| r.1.len()).max().unwrap_or(1) as f64;
        let pitch = per_row * 13.0 + 13.0;
        let height = rows.len() as f64 * pitch + 34.0;
        let x = |value: f64| {
            let at = (value.max(1e-30).log10() - f64::from(low)) / f64::from(high - low);
            LABEL + at.clamp(0.0, 1.0) * (WIDTH - LABEL - 20.0)
        };
        let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#, escaped(alt));
        for decade in low..=high {
            let at = x(10f64.powi(decade));
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{at:.1}" y1="0" x2="{at:.1}" y2="{:.1}"/><text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                height - 26.0,
                height - 8.0,
                (self.tick)(decade)
            );
        }
        for (i, (label, bars)) in rows.iter().enumerate() {
            let top = i as f64 * pitch + 6.0;
            let middle = top + bars.len() as f64 * 6.5 + 5.0;
            let _ = write!(svg, r#"<text class="label" x="0" y="{middle:.1}">{}</text>"#, escaped(label));
            for (j, (class, value)) in bars.iter().enumerate() {
                let y = top + j as f64 * 13.0;
                let width = (x(*value) - LABEL).max(2.0);
                let _ = write!(
                    svg,
                    r#"<g><title>{}: {value:.3e}</title><rect class="{class}" x="{LABEL}" y="{y:.1}" width="{width:.1}" height="10" rx="2"/></g>"#,
                    escaped(label)
                );
            }
        }
        svg.push_str("</svg>");
        svg
    }
}

// ---- what evidence says

/// How often each verdict was given, the worst first.
fn summary(findings: &[Finding]) -> Vec<(Verdict, usize)> {
    let mut all: Vec<(Verdict, usize)> = Vec::new();
    for finding in findings {
        match all.iter_mut().find(|(v, _)| *v == finding.verdict) {
            Some((_, n)) => *n += 1,
            None => all.push((finding.verdict, 1)),
        }
    }
    all.sort_by_key(|(v, _)| std::cmp::Reverse(weight(*v)));
    all
}

/// How bad a verdict is, for the one that stands for a gate: what could not be judged is worse than what was predicted.
fn weight(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Passed => 0,
        Verdict::WellFormed => 1,
        Verdict::Predicted => 2,
        Verdict::Failed => 4,
        _ => 3,
    }
}

fn gates(findings: &[Finding]) -> Vec<Gate> {
    let mut all: Vec<Gate> = Vec::new();
    for finding in findings {
        if all.last().is_none_or(|g| g.name != finding.gate) {
            all.push(Gate {
                name: finding.gate.clone(),
                worst: finding.verdict,
                seen_on: Vec::new(),
                parts: Vec::new(),
            });
        }
        let Some(gate) = all.last_mut() else { continue };
        if weight(finding.verdict) > weight(gate.worst) {
            gate.worst = finding.verdict;
        }
        if !gate.seen_on.contains(&finding.measured_on) {
            gate.seen_on.push(finding.measured_on.clone());
        }
        gate.parts.push(finding.clone());
    }
    all
}

/// `1 - cosine` of each package, of the program and with quantisation.
fn cosines(manifest: &Manifest, findings: &[Finding]) -> Option<Chart> {
    let order = |path: &str| manifest.layers.iter().chain(&manifest.head).position(|s| s.path == path);
    let mut all: Vec<&Finding> = findings.iter().filter(|f| f.gate == range_golden::NAME).collect();
    all.sort_by_key(|f| order(&f.subject));
    let figure = |f: &Finding, which: &str| f.figures[which]["worst"]["cosine"].as_f64();
    let label = |path: &str| path.trim_end_matches(".mlpackage").to_owned();
    let mut bars = Vec::new();
    let mut rows = Vec::new();
    for finding in all {
        let (Some(tight), Some(cost)) = (figure(finding, "tight"), figure(finding, "cost")) else { continue };
        bars.push((label(&finding.subject), vec![("tight", 1.0 - tight), ("cost", 1.0 - cost)]));
        rows.push(vec![label(&finding.subject), format!("{tight:.7}"), format!("{cost:.7}")]);
    }
    if rows.is_empty() {
        return None;
    }
    let svg =
        Bars { decades: (-9, -1), tick: &cosine_tick }.draw(&bars, "Distance of each package's worst cosine from 1");
    let note = "The worst token of each package; the axis is the cosine, on a scale of its distance from 1. Shorter is closer.";
    Some(Chart { svg, rows, note: note.into() })
}

/// `1 - cosine` of each layer's output on the shard's own weights, the worst of the three places.
fn layers(findings: &[Finding]) -> Option<Chart> {
    let mut all: BTreeMap<u64, Vec<(u64, f64)>> = BTreeMap::new();
    let of = |f: &Finding| f.figures["layer_by_layer"].as_array().cloned().unwrap_or_default();
    for entry in findings.iter().filter(|f| f.gate == range_golden::NAME).flat_map(of) {
        let (Some(layer), Some(position)) = (entry["layer"].as_u64(), entry["position"].as_u64()) else { continue };
        // A cosine that is no number is written as null, and is the worst there is.
        all.entry(layer).or_default().push((position, entry["figures"]["cosine"].as_f64().unwrap_or(0.0)));
    }
    if all.is_empty() {
        return None;
    }
    let worst = |places: &[(u64, f64)]| places.iter().map(|(_, cosine)| 1.0 - cosine).fold(0.0, f64::max);
    let bars: Vec<_> = all.iter().map(|(n, places)| (format!("layer {n}"), vec![("tight", worst(places))])).collect();
    let rows = all.iter().map(|(n, places)| {
        let at = |(position, cosine): &(u64, f64)| format!("{cosine:.8} at {position}");
        vec![n.to_string(), places.iter().map(at).collect::<Vec<_>>().join(", ")]
    });
    let rows = rows.collect();
    let svg =
        Bars { decades: (-9, -1), tick: &cosine_tick }.draw(&bars, "Distance of each layer's worst cosine from 1");
    let note = "The output of every layer on its way through its package, on the package’s own weights: the worst of the first \
                position, the middle of the context and the last.";
    Some(Chart { svg, rows, note: note.into() })
}

/// The axis of a distance from 1, as the cosine that it is.
fn cosine_tick(decade: i32) -> String {
    format!("{:.*}", decade.unsigned_abs() as usize, 1.0 - 10f64.powi(decade))
}

/// Everything that the contract probe tried, what it is judged by before what it is not.
fn probed(findings: &[Finding]) -> Option<Probe> {
    let finding = findings.iter().find(|f| f.gate == probe::NAME && f.figures["neighbours"].is_array())?;
    let nats = |v: &Value| v.as_f64().map_or_else(|| "–".to_owned(), |v| format!("{v:+.3}"));
    let tried = |list: &str, judged: bool| -> Vec<Tried> {
        let of = |v: &Value| Tried {
            name: v["name"].as_str().unwrap_or_default().to_owned(),
            doubt: nats(&v["doubt"]),
            surprise: nats(&v["surprise"]),
            better: v["better"].as_f64().map_or_else(String::new, |v| format!("{:.0}%", 100.0 * v)),
            prompts: v["prompts"].as_u64().unwrap_or(0),
            judged,
        };
        finding.figures[list].as_array().into_iter().flatten().map(of).collect()
    };
    let mut rows = tried("neighbours", true);
    rows.extend(tried("unjudged", false));
    Some(Probe { verdict: finding.verdict, message: finding.message.clone(), rows })
}

/// How near each layer's largest magnitude comes to where fp16 ends, on the oldest chip: figures named `layers` that carry a
/// `headroom`, how many times larger the value could have been.
fn headroom(findings: &[Finding]) -> Option<Chart> {
    let mut all: Vec<(u64, String, f64)> = Vec::new();
    for entry in findings.iter().flat_map(|f| f.figures["layers"].as_array().into_iter().flatten()) {
        let (Some(layer), Some(value)) = (entry["layer"].as_u64(), entry["value"].as_str()) else { continue };
        let Some(headroom) = entry["headroom"].as_f64().filter(|h| *h > 0.0) else { continue };
        all.push((layer, value.to_owned(), headroom));
    }
    if all.is_empty() {
        return None;
    }
    all.sort_by_key(|a| a.0);
    let class = |headroom: f64| if headroom < 1.0 { "bad" } else { "tight" };
    let bars: Vec<_> = all.iter().map(|a| (format!("layer {}", a.0), vec![(class(a.2), 1.0 / a.2)])).collect();
    let rows = all.into_iter().map(|(layer, value, h)| vec![layer.to_string(), value, format!("{h:.1}x")]).collect();
    let tick = |d: i32| match d {
        0 => "limit".to_owned(),
        d => format!("1/{}", 10u64.pow(d.unsigned_abs())),
    };
    let svg =
        Bars { decades: (-4, 0), tick: &tick }.draw(&bars, "Largest magnitude of each layer as a part of its limit");
    let note =
        "The value of each layer that comes nearest to its limit on an M1, as a part of that limit. Shorter is safer.";
    Some(Chart { svg, rows, note: note.into() })
}

fn placement(findings: &[Finding]) -> Vec<Placement> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let list = |v: &Value| v.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let of = |f: &Finding| {
        let rule = |r: &Value| PlacementRule {
            rule: text(&r["rule"]),
            place: text(&r["place"]),
            ops: r["ops"].as_u64().unwrap_or(0),
            confidence: text(&r["confidence"]),
            sources: list(&r["sources"]).join(", "),
            says: text(&r["says"]),
            against: list(&r["against"]),
        };
        let figures = &f.figures;
        Placement {
            part: f.subject.clone(),
            place: text(&figures["place"]),
            ane: figures["ane"].as_u64().unwrap_or(0),
            total: figures["total"].as_u64().unwrap_or(0),
            target: format!("{}, macOS {}", text(&figures["target"]["chip"]), figures["target"]["os"]),
            rules: figures["rules"].as_array().into_iter().flatten().map(rule).collect(),
        }
    };
    findings.iter().filter(|f| f.gate == residency::NAME && f.verdict == Verdict::Predicted).map(of).collect()
}

/// Figures named `timings`, of whichever gate: what, how much, seen on what.
fn timings(findings: &[Finding]) -> Vec<(String, String, String)> {
    let mut rows = Vec::new();
    for finding in findings {
        for (name, value) in finding.figures["timings"].as_object().into_iter().flatten() {
            let Some(value) = value.as_f64() else { continue };
            let value = if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.1}") };
            rows.push((format!("{}: {}", finding.gate, name.replace('_', " ")), value, finding.measured_on.clone()));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn finding(figures: Value) -> Finding {
        Finding {
            gate: "a-gate".into(),
            subject: "layers/00-02.mlpackage".into(),
            verdict: Verdict::Passed,
            measured_on: "a device".into(),
            bundle: String::new(),
            message: String::new(),
            figures,
        }
    }

    #[test]
    fn headroom_is_drawn_where_there_are_figures_and_what_overflows_stands_out() {
        assert!(headroom(&[finding(Value::Null)]).is_none());
        let layers = json!([{"layer": 1, "value": "blk_1_gated", "headroom": 0.5}, {"layer": 0, "value": "blk_0_<x>", "headroom": 20.0}]);
        let chart = headroom(&[finding(json!({"layers": layers}))]).unwrap();
        assert_eq!(chart.rows, [["0", "blk_0_<x>", "20.0x"], ["1", "blk_1_gated", "0.5x"]]);
        assert_eq!(chart.svg.matches(r#"class="bad""#).count(), 1);
        assert!(!chart.svg.contains("<x>"));
    }

    #[test]
    fn layers_show_their_worst_place_and_the_probe_shows_what_it_is_not_judged_by() {
        assert!(layers(&[finding(Value::Null)]).is_none() && probed(&[finding(Value::Null)]).is_none());
        let at = |layer: u64, position: u64, cosine: f64| json!({"layer": layer, "position": position, "figures": {"cosine": cosine}});
        let figures = json!({"layer_by_layer": [at(1, 0, 0.5), at(1, 9, 0.999), at(0, 0, f64::NAN)]});
        let golden = Finding { gate: range_golden::NAME.into(), ..finding(figures) };
        let chart = layers(&[golden]).unwrap();
        assert_eq!(chart.rows[1], ["1", "0.50000000 at 0, 0.99900000 at 9"]);
        assert!(chart.svg.contains("layer 0: 1.000e0") && chart.svg.contains("layer 1: 5.000e-1"));

        let tried = |name: &str| json!([{"name": name, "doubt": -0.25, "surprise": null, "better": 0.5, "prompts": 3}]);
        let figures = json!({"neighbours": tried("rope.dim = 96"), "unjudged": tried("eps x 10")});
        let shown = probed(&[Finding { gate: probe::NAME.into(), ..finding(figures) }]).unwrap();
        assert_eq!((shown.rows[0].judged, shown.rows[1].judged), (true, false));
        assert_eq!((shown.rows[0].doubt.as_str(), shown.rows[0].surprise.as_str()), ("-0.250", "–"));
    }

    #[test]
    fn the_worst_verdict_stands_for_a_gate() {
        let failed = Finding { verdict: Verdict::Failed, ..finding(Value::Null) };
        let all = gates(&[finding(Value::Null), failed, finding(Value::Null)]);
        assert_eq!((all.len(), all[0].worst, all[0].parts.len()), (1, Verdict::Failed, 3));
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(2_015_800_000), "2.02 GB");
    }
}
