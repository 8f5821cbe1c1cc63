//! The distributions as a plot.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Measured, QUANTITIES, Quantity, Report};
use crate::error::BenchError;
use crate::plot::COLOURS;
use crate::statistics::Distribution;

const SIZE: (u32, u32) = (900, 760);

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawingError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// Draws which share of the starts was done after how many milliseconds.
pub fn write(report: &Report, path: &Path) -> Result<(), BenchError> {
    draw(report, path).map_err(|error| BenchError::Plot {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn draw<'a>(report: &Report, path: &'a Path) -> Result<(), DrawingError<'a>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let panels = root.split_evenly((2, 1));
    for (panel, quantity) in panels.iter().zip(&QUANTITIES) {
        draw_panel(panel, &report.monitors, quantity)?;
    }
    root.present()
}

fn draw_panel<'a>(
    panel: &Panel<'a>,
    monitors: &[Measured],
    quantity: &Quantity,
) -> Result<(), DrawingError<'a>> {
    let of = quantity.of;
    let least = monitors.iter().map(|m| of(m).min_ms);
    let greatest = monitors.iter().map(|m| of(m).max_ms);
    // Whole decades, or the axis has no numbers on it.
    let from = decade(f64::floor, least.fold(f64::INFINITY, f64::min));
    let to = decade(f64::ceil, greatest.fold(0.0, f64::max)).max(from * 10.0);
    let mut chart = ChartBuilder::on(panel)
        .caption(quantity.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((from..to).log_scale(), 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("ms")
        .y_desc("% of starts")
        .light_line_style(WHITE)
        .draw()?;
    for (monitor, colour) in monitors.iter().zip(COLOURS.into_iter().cycle()) {
        let distribution = of(monitor);
        let label = format!("{}, p50 {:.1} ms", monitor.name, distribution.p50_ms);
        let line = ShapeStyle::from(colour).stroke_width(2);
        chart
            .draw_series(LineSeries::new(steps(distribution), line))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], line));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleMiddle)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

/// The power of ten next to `ms`, downwards or upwards.
fn decade(round: fn(f64) -> f64, ms: f64) -> f64 {
    10_f64.powf(round(ms.log10()))
}

/// The empirical distribution function: up by one measurement's share at each.
fn steps(distribution: &Distribution) -> Vec<(f64, f64)> {
    let samples = &distribution.sorted_ms;
    let share = 100.0 / samples.len() as f64;
    samples
        .iter()
        .zip(0_u32..)
        .flat_map(|(ms, before)| {
            let before = f64::from(before);
            [(*ms, before * share), (*ms, (before + 1.0) * share)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_rises_from_nothing_to_all() {
        let distribution = Distribution::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        let steps = steps(&distribution);
        assert_eq!(steps.first(), Some(&(1.0, 0.0)));
        assert_eq!(steps.last(), Some(&(4.0, 100.0)));
        assert!(steps.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
    }
}
