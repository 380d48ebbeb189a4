//! Reports as a page.

use super::report::{CompareReport, QualityReport};

/// x
pub fn report_page(_report: &QualityReport) -> String {
    String::new()
}

/// x
pub fn compare_page(_report: &CompareReport) -> String {
    String::new()
}
