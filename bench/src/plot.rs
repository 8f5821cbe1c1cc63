//! Figures side by side as a plot: bars for medians, lines from the least to the
//! greatest.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::comparison::{Comparison, Group};
use crate::error::BenchError;

/// Told apart by most kinds of colour vision (Okabe and Ito).
pub(crate) const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 44;
/// Title, axis and margins of a panel.
const FRAME_HEIGHT: u32 = 110;
const LABEL_WIDTH: u32 = 240;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawingError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// Draws a panel for each group.
pub fn write(comparison: &Comparison, path: &Path) -> Result<(), BenchError> {
    draw(comparison, path).map_err(|error| BenchError::Plot {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn height(group: &Group) -> u32 {
    let rows = u32::try_from(group.rows.len()).unwrap_or(1);
    FRAME_HEIGHT + ROW_HEIGHT * rows
}

fn draw<'a>(comparison: &Comparison, path: &'a Path) -> Result<(), DrawingError<'a>> {
    let whole = comparison.groups.iter().map(height).sum();
    let root = SVGBackend::new(path, (WIDTH, whole)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut rest = root.clone();
    for group in &comparison.groups {
        let (panel, below) = rest.split_vertically(height(group));
        draw_group(&panel, comparison, group)?;
        rest = below;
    }
    root.present()
}

fn draw_group<'a>(
    panel: &Panel<'a>,
    comparison: &Comparison,
    group: &Group,
) -> Result<(), DrawingError<'a>> {
    let spreads = group.rows.iter().flat_map(|row| &row.measured).flatten();
    let greatest = spreads.map(|spread| spread.max).fold(0.0, f64::max);
    let rows = group.rows.len();
    let mut chart = ChartBuilder::on(panel)
        .caption(
            format!("{}, {}", group.title, group.unit),
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(LABEL_WIDTH)
        // The first row on top.
        .build_cartesian_2d(
            0.0..greatest.max(f64::MIN_POSITIVE) * 1.05,
            rows as f64..0.0,
        )?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(WHITE)
        .draw()?;
    for (index, monitor) in comparison.monitors.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let thickness = 0.8 / comparison.monitors.len() as f64;
        let bars = group.rows.iter().enumerate().filter_map(|(row, figures)| {
            let spread = figures.measured.get(index)?.as_ref()?;
            let top = row as f64 + 0.1 + index as f64 * thickness;
            Some((spread, top))
        });
        let bars: Vec<_> = bars.collect();
        chart
            .draw_series(bars.iter().map(|(spread, top)| {
                Rectangle::new(
                    [(0.0, *top), (spread.p50, top + thickness)],
                    colour.filled(),
                )
            }))?
            .label(monitor.name.as_str())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], colour.filled()));
        chart.draw_series(bars.iter().map(|(spread, top)| {
            let middle = top + thickness / 2.0;
            PathElement::new([(spread.min, middle), (spread.max, middle)], BLACK)
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    for (row, figures) in group.rows.iter().enumerate() {
        let (_, y) = chart.backend_coord(&(0.0, row as f64 + 0.35));
        let (_, panel_y) = panel.get_base_pixel();
        let style = ("sans-serif", 14).into_text_style(panel);
        panel.draw_text(&figures.name, &style, (16, y - panel_y))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::Better;
    use crate::monitor::Identity;

    #[test]
    fn every_row_and_every_monitor_is_in_the_plot() {
        let mut comparison = Comparison::new("exits", 2, String::new(), &[]);
        comparison.monitors.push(Identity {
            name: "mote-vmm".to_owned(),
            version: "1".to_owned(),
        });
        for title in ["first", "second"] {
            let mut group = Group {
                title: title.to_owned(),
                unit: "µs".to_owned(),
                better: Better::Less,
                rows: Vec::new(),
            };
            group.push("port", vec![vec![7.0, 8.0]]);
            group.push("nothing", vec![Vec::new()]);
            comparison.groups.push(group);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exits.svg");
        write(&comparison, &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for text in ["first, µs", "second, µs", "mote-vmm", "port", "nothing"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
