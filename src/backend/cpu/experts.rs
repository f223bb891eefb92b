//! A mixture of experts: rows are gathered by expert, so that every expert's weights are read once.
//!
//! A row's result is the sum over its experts in ascending order and then the shared expert's, whatever else is in
//! the batch, and products do not depend on the other rows either.

use super::activation;
use super::invalid;
use super::linear::{self, Matrix};
use super::norm::AddRow;
use super::simd::Isa;
use super::tensor::{Buffer, Tensor, product};
use super::threads::Threads;
use crate::backend::{BackendResult, ExpertWeighting, Mixture, RouterScoring};

/// A row that passes an expert.
struct Route {
    expert: usize,
    row: usize,
    weight: f32,
}

/// Memory of the routes and of one expert's rows. Grows to the largest call seen.
pub(super) struct Workspace {
    routes: Vec<Route>,
    scores: Vec<f32>,
    order: Vec<usize>,
    /// Gathered input, input and output of the activation, result.
    rows: [Buffer; 4],
}

impl Workspace {
    pub(super) const EMPTY: Workspace = Workspace {
        routes: Vec::new(),
        scores: Vec::new(),
        order: Vec::new(),
        rows: [const { Buffer::EMPTY }; 4],
    };
}

/// Checks the shapes of a mixture for rows of `hidden` elements.
pub(super) fn check(
    operation: &'static str,
    mixture: &Mixture<'_, Tensor>,
    rows: usize,
    hidden: usize,
) -> BackendResult<()> {
    let (num_experts, width) = (mixture.num_experts, mixture.down.columns());
    if mixture.num_chosen == 0 || mixture.num_chosen > num_experts || hidden == 0 {
        let message = format!("{} of {num_experts} experts, rows of {hidden}", mixture.num_chosen);
        return Err(invalid(operation, message));
    }
    let up_rows = num_experts.saturating_mul(mixture.gating.input_width(width));
    mixture.up.expect_shape(operation, "up", up_rows, hidden)?;
    mixture.down.expect_shape(operation, "down", num_experts.saturating_mul(hidden), width)?;
    let Some(shared) = &mixture.shared else { return Ok(()) };
    shared.values.expect(operation, "shared values", rows, hidden)?;
    shared.gate.map_or(Ok(()), |gate| gate.expect(operation, "shared gate", rows, 1))
}

/// One call's arguments; shapes are checked.
pub(super) struct MixExperts<'a> {
    /// `[rows, hidden]`.
    pub(super) input: &'a [f32],
    /// `[rows, num_experts]`.
    pub(super) products: &'a [f32],
    pub(super) mixture: &'a Mixture<'a, Tensor>,
    /// `[rows, hidden]`.
    pub(super) out: &'a mut [f32],
}

impl MixExperts<'_> {
    pub(super) fn run(
        self,
        threads: &mut Threads,
        isa: Isa,
        linear_workspace: &mut linear::Workspace,
        workspace: &mut Workspace,
    ) -> BackendResult<()> {
        let Self { input, products, mixture, out } = self;
        let (hidden, width) = (mixture.up.columns(), mixture.down.columns());
        let up_width = mixture.gating.input_width(width);
        choose(products, mixture, workspace);
        let Workspace { routes, rows: [gathered, up, activated, results], .. } = workspace;
        out.fill(0.0);
        for routes in routes.chunk_by(|left, right| left.expert == right.expert) {
            let (expert, count) = (routes[0].expert, routes.len());
            let gathered = grown(gathered, count * hidden)?;
            for (target, route) in gathered.chunks_exact_mut(hidden).zip(routes) {
                target.copy_from_slice(&input[route.row * hidden..(route.row + 1) * hidden]);
            }
            let rows_of = |tensor, rows: usize| Matrix { tensor, rows: expert * rows..(expert + 1) * rows };
            let up = grown(up, count * up_width)?;
            linear::linear(threads, isa, linear_workspace, gathered, &rows_of(mixture.up, up_width), up)?;
            let activated = grown(activated, count * width)?;
            activation::Rows { input: up, bias: None, gating: mixture.gating, out: activated, width }
                .activate(threads, isa, mixture.function);
            let results = grown(results, count * hidden)?;
            let down = rows_of(mixture.down, hidden);
            linear::linear(threads, isa, linear_workspace, activated, &down, results)?;
            for (result, route) in results.chunks_exact_mut(hidden).zip(routes) {
                result.iter_mut().for_each(|value| *value *= route.weight);
                let target = &mut out[route.row * hidden..(route.row + 1) * hidden];
                isa.run(AddRow { target, source: result });
            }
        }
        add_shared(isa, mixture, out, hidden);
        Ok(())
    }
}

/// The buffer's leading elements, of which there are enough.
fn grown(buffer: &mut Buffer, num_elements: usize) -> BackendResult<&mut [f32]> {
    buffer.grow(product(&[num_elements, size_of::<f32>()]), "rows of an expert")?;
    Ok(&mut buffer.elements_mut::<f32>()[..num_elements])
}

/// Lists the routes of all rows, by expert and then by row.
fn choose(products: &[f32], mixture: &Mixture<'_, Tensor>, workspace: &mut Workspace) {
    let Workspace { routes, scores, order, .. } = workspace;
    routes.clear();
    for (row, products) in products.chunks_exact(mixture.num_experts).enumerate() {
        score(products, mixture.scoring, scores);
        order.clear();
        order.extend(0..mixture.num_experts);
        // Stable, so that of equal scores the first expert's comes first.
        order.sort_by(|&left, &right| scores[right].total_cmp(&scores[left]));
        let chosen = &order[..mixture.num_chosen];
        let divisor = match mixture.weighting {
            ExpertWeighting::AsScored => 1.0,
            ExpertWeighting::Normalized => chosen.iter().map(|&expert| scores[expert]).sum(),
        };
        routes.extend(chosen.iter().map(|&expert| Route {
            expert,
            row,
            weight: scores[expert] / divisor * mixture.scale,
        }));
    }
    routes.sort_by_key(|route| (route.expert, route.row));
}

/// Scores of a router's products for one row.
fn score(products: &[f32], scoring: RouterScoring, scores: &mut Vec<f32>) {
    scores.clear();
    match scoring {
        RouterScoring::Softmax => {
            let largest = products.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.extend(products.iter().map(|product| (product - largest).exp()));
            let total: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|score| *score /= total);
        }
        RouterScoring::Sigmoid => scores.extend(products.iter().map(|&product| sigmoid(product))),
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Adds the shared expert's result.
fn add_shared(isa: Isa, mixture: &Mixture<'_, Tensor>, out: &mut [f32], hidden: usize) {
    let Some(shared) = &mixture.shared else { return };
    let values = shared.values.elements::<f32>().chunks_exact(hidden);
    let gates = shared.gate.map(|gate| gate.elements::<f32>());
    for (row, (target, source)) in out.chunks_exact_mut(hidden).zip(values).enumerate() {
        match gates {
            None => isa.run(AddRow { target, source }),
            Some(gates) => {
                let factor = sigmoid(gates[row]);
                target.iter_mut().zip(source).for_each(|(target, source)| *target += source * factor);
            }
        }
    }
}
