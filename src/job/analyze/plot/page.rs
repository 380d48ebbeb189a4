//! The page around the picture.

use super::Subject;
use super::svg::escape;
use crate::job::analyze::statistics::tensors;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,'Segoe UI',sans-serif;margin:0 auto;padding:1.5rem;max-width:64rem;\
color:#1b1f24;background:#fff}svg{max-width:100%;height:auto}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;\
font-variant-numeric:tabular-nums}th,td{padding:.2rem .6rem;text-align:right;\
border-bottom:1px solid #d8dee4}th:first-child,td:first-child{text-align:left}\
@media screen and (prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}\
th,td{border-color:#30363d}}@page{margin:14mm}\
@media print{body{max-width:none;padding:0}.wide{overflow:visible}table{font-size:7.5pt}\
th,td{padding:.1rem .3rem}tr{break-inside:avoid}}";

/// A page with the picture and the statistics of every tensor.
pub(super) fn around(subject: &Subject, picture: &str) -> String {
    let name = escape(subject.name);
    let rows: Vec<String> = tensors(subject.sums)
        .iter()
        .map(|t| {
            let cosine = t.cosine_to_previous.map_or(String::new(), |c| format!("{c:.4}"));
            format!(
                "<tr><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{:.4}</td><td>{:.4}</td>\
                 <td>{:.4}</td><td>{:.2}</td><td>{:.3}</td><td>{:.2}</td><td>{cosine}</td></tr>\n",
                escape(&t.tensor),
                t.columns,
                t.sum,
                t.min,
                t.max,
                t.mean,
                t.std,
                100.0 * t.active,
                t.entropy,
                100.0 * t.outliers
            )
        })
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>Importance: {name}</title>\
         <style>{STYLE}</style></head>\n<body>\n{picture}\n<h2>Statistics</h2>\n\
         <div class=\"wide\"><table><thead><tr><th>tensor</th><th>columns</th><th>sum</th>\
         <th>min</th><th>max</th><th>mean</th><th>deviation</th><th>active %</th>\
         <th>entropy, bits</th><th>|z| &gt; 1, %</th><th>cosine to layer before</th></tr></thead>\n\
         <tbody>\n{}</tbody></table></div>\n</body></html>\n",
        rows.concat()
    )
}
