//! Mixtures of experts (`kernels/experts*.cu`): routing, products grouped by expert, and the sum of a row's results.
//!
//! Everything between the router's products and the result stays on the device, and launches depend on sizes alone.
//! Results of single pairs of a row and an expert are kept in the type of activations: that halves the largest
//! buffer, and the rounding is that of an MLP's result, which is kept in it too.

mod products;

use self::products::{Operands, Pairs, Products, TILE_SHAPES, TileShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::memory::Arena;
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{BackendResult, DType, ExpertLimits, ExpertWeighting, Mixture, RouterScoring};

const OPERATION: &str = "mix_experts";
/// Most experts, whose counts lie in shared memory.
const MAX_EXPERTS: usize = 4096;
/// Most experts of a row; a lane keeps each.
const MAX_CHOSEN: usize = 32;
/// About the most that the buffers of pairs take; more rows pass in several parts.
const PART_BYTES: u64 = 320 << 20;
/// Bytes of a pair in all lists.
const PAIR_BYTES: u64 = 5 * 4 + TILE_BYTES;
/// Bytes of an entry of the list of tiles.
const TILE_BYTES: u64 = 32;
/// Rows of a block of `experts_route`.
const ROUTE_ROWS: usize = 4;
/// Most rows that `experts_plan` takes, a warp each.
const MAX_PLAN_ROWS: usize = 32;
/// Dynamic shared memory that every kernel may use beside a little of its own.
const MAX_SHARED_BYTES: usize = 47 << 10;
const COMBINE_THREADS: u32 = 128;
/// Largest second dimension of a grid; blocks stride over more rows.
const MAX_GRID_ROWS: usize = 65_535;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct RouteParams {
    header: DevicePtr,
    products: DevicePtr,
    experts: DevicePtr,
    weights: DevicePtr,
    rows: u32,
    num_experts: u32,
    num_chosen: u32,
    is_sigmoid: u32,
    is_normalized: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct OrderParams {
    header: DevicePtr,
    experts: DevicePtr,
    weights: DevicePtr,
    places: DevicePtr,
    pair_rows: DevicePtr,
    pair_weights: DevicePtr,
    tiles: DevicePtr,
    rows: u32,
    num_experts: u32,
    num_chosen: u32,
    tile_rows: u32,
    max_tiles: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct CombineParams {
    header: DevicePtr,
    places: DevicePtr,
    results: DevicePtr,
    shared_values: DevicePtr,
    shared_gates: DevicePtr,
    out: DevicePtr,
    rows: u32,
    num_chosen: u32,
    vectors: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PlanParams {
    route: RouteParams,
    order: OrderParams,
}

const _: () = assert!(size_of::<PlanParams>() == 136);
const _: () = assert!(size_of::<RouteParams>() == 56 && size_of::<OrderParams>() == 80);
const _: () = assert!(size_of::<CombineParams>() == 64);

// SAFETY: `repr(C)`, mirrors ExpertRouteParams in experts.cu.
unsafe impl Params for RouteParams {}
// SAFETY: `repr(C)`, mirrors ExpertOrderParams in experts.cu.
unsafe impl Params for OrderParams {}
// SAFETY: `repr(C)`, mirrors ExpertPlanParams in experts.cu.
unsafe impl Params for PlanParams {}
// SAFETY: `repr(C)`, mirrors ExpertCombineParams in experts.cu.
unsafe impl Params for CombineParams {}

/// Where the lists and buffers of a part's pairs lie: places in the workspace until it is there, then addresses.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Rows of a part.
    rows: usize,
    /// `[rows, num_chosen]` each: a row's experts in ascending order, their weights, and the places of the pairs.
    experts: u64,
    weights: u64,
    places: u64,
    /// `[pairs]` each.
    pair_rows: u64,
    pair_weights: u64,
    tiles: u64,
    /// `[pairs, width]`.
    activated: u64,
    /// `[pairs, hidden]`.
    results: u64,
    end: u64,
}

impl Layout {
    fn new(limits: &ExpertLimits) -> Layout {
        let ExpertLimits { max_tokens, num_chosen, hidden, width, .. } = *limits;
        let (hidden, width, num_chosen) = (hidden as u64, width as u64, num_chosen as u64);
        let row_bytes = num_chosen * (PAIR_BYTES + 2 * (hidden + width));
        let rows = (PART_BYTES / row_bytes.max(1)).clamp(1, max_tokens.max(1) as u64);
        let pairs = rows * num_chosen;
        let mut end = 0;
        let mut place = |pair_bytes: u64| {
            let start: u64 = end;
            end += (pairs * pair_bytes).next_multiple_of(256);
            start
        };
        Layout {
            rows: rows as usize,
            experts: place(4),
            weights: place(4),
            places: place(4),
            pair_rows: place(4),
            pair_weights: place(4),
            tiles: place(TILE_BYTES),
            activated: place(2 * width),
            results: place(2 * hidden),
            end,
        }
    }

    /// The same from `base` on.
    fn at(self, base: DevicePtr) -> Layout {
        Layout {
            rows: self.rows,
            experts: base + self.experts,
            weights: base + self.weights,
            places: base + self.places,
            pair_rows: base + self.pair_rows,
            pair_weights: base + self.pair_weights,
            tiles: base + self.tiles,
            activated: base + self.activated,
            results: base + self.results,
            end: base + self.end,
        }
    }
}

/// Bytes that [`Experts::reserve`] takes.
pub(super) fn device_bytes(limits: &ExpertLimits) -> u64 {
    Layout::new(limits).end
}

/// Arguments of one call.
pub(super) struct MixExperts<'a> {
    pub(super) input: &'a Tensor,
    pub(super) products: &'a Tensor,
    pub(super) mixture: &'a Mixture<'a, Tensor>,
    pub(super) out: &'a mut Tensor,
    pub(super) rows: usize,
    /// The step's header where the batch may have fewer tokens than `rows`, or 0.
    pub(super) header: DevicePtr,
}

pub(super) struct Experts {
    route: Kernel<RouteParams>,
    order: Kernel<OrderParams>,
    /// Both in one launch.
    plan: Kernel<PlanParams>,
    combine: PerDType<Kernel<CombineParams>>,
    /// As [`TILE_SHAPES`].
    products: Vec<Products>,
    workspace: Option<(ExpertLimits, Layout)>,
}

/// Whether the kernels route to `num_chosen` of `num_experts`.
pub(super) fn supports(num_experts: usize, num_chosen: usize) -> bool {
    num_experts <= MAX_EXPERTS && num_chosen <= MAX_CHOSEN
}

impl Experts {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Experts> {
        let products = TILE_SHAPES.into_iter().map(|shape| Products::new(gpu, modules, shape));
        let route = modules.kernel(gpu, "experts", "experts_route")?;
        route.allow_shared_bytes(gpu, (4 * ROUTE_ROWS * MAX_EXPERTS) as u32)?;
        Ok(Experts {
            route,
            order: modules.kernel(gpu, "experts", "experts_order")?,
            plan: modules.kernel(gpu, "experts", "experts_plan")?,
            combine: PerDType::try_new(|dtype| {
                modules.kernel(gpu, "experts", &format!("experts_combine_{dtype}"))
            })?,
            products: products.collect::<BackendResult<_>>()?,
            workspace: None,
        })
    }

    /// See [`crate::backend::Backend::reserve_experts`].
    pub(super) fn reserve(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        arena: &mut Arena,
        limits: &ExpertLimits,
    ) -> BackendResult<()> {
        let ExpertLimits { num_experts, num_chosen, hidden, width, .. } = *limits;
        let is_supported = supports(num_experts, num_chosen);
        check.require(is_supported && (1..=num_experts).contains(&num_chosen), || {
            format!(
                "{num_chosen} of {num_experts} experts; the CUDA backend takes up to {MAX_CHOSEN} of {MAX_EXPERTS}"
            )
        })?;
        let layout = Layout::new(limits);
        // Kernels count elements of one expert's weights and of one part's buffers with 32 bits.
        let widest = hidden.max(width);
        to_u32(check.operation, hidden.saturating_mul(width).saturating_mul(2))?;
        to_u32(check.operation, (layout.rows * num_chosen).saturating_mul(widest))?;
        let base = arena.alloc(gpu, layout.end, "workspace of experts")?;
        self.workspace = Some((*limits, layout.at(base)));
        Ok(())
    }

    /// Rows of the largest step that can be recorded: it passes in one part.
    pub(super) fn recorded_rows_max(&self) -> usize {
        self.workspace.as_ref().map_or(usize::MAX, |(_, layout)| layout.rows)
    }

    /// See [`crate::backend::Backend::mix_experts`].
    pub(super) fn run(&self, gpu: &Gpu, check: Checker, call: MixExperts<'_>) -> BackendResult<()> {
        let Some((limits, layout)) = &self.workspace else {
            return check.fail("no experts were reserved".to_owned());
        };
        check_call(check, limits, &call)?;
        if call.rows == 0 {
            return Ok(());
        }
        let num_parts = call.rows.div_ceil(layout.rows);
        check.require(num_parts == 1 || call.header == 0, || {
            format!("{} rows are too many for a recorded step", call.rows)
        })?;
        let part_rows = call.rows.div_ceil(num_parts);
        for first_row in (0..call.rows).step_by(part_rows) {
            let part = Part { first_row, rows: part_rows.min(call.rows - first_row), call: &call };
            self.run_part(gpu, check, layout, &part)?;
        }
        Ok(())
    }

    fn run_part(&self, gpu: &Gpu, check: Checker, layout: &Layout, part: &Part<'_>) -> BackendResult<()> {
        let MixExperts { input, mixture, .. } = *part.call;
        let Mixture { num_experts, num_chosen, .. } = *mixture;
        let (hidden, width) = (input.columns(), mixture.down.columns());
        let num_pairs = part.rows * num_chosen;
        let products = &self.products[TileShape::index(part.rows, num_pairs.div_ceil(num_experts))];
        let max_tiles = products.shape.max_tiles(num_pairs, num_experts);
        self.choose(gpu, layout, part, (products.shape.rows, max_tiles))?;
        let pairs = Pairs {
            max_tiles,
            tiles: layout.tiles,
            pair_rows: layout.pair_rows,
            pair_weights: layout.pair_weights,
            dtype: input.dtype(),
        };
        let up = Operands {
            input: input.row(part.first_row),
            weight: mixture.up.data,
            out: layout.activated,
            num_experts,
            in_features: hidden,
            out_features: width,
        };
        let down = Operands {
            input: layout.activated,
            weight: mixture.down.data,
            out: layout.results,
            num_experts,
            in_features: width,
            out_features: hidden,
        };
        let activation = Some((mixture.function, mixture.gating));
        products.run(gpu, check, &pairs, &up, activation)?;
        products.run(gpu, check, &pairs, &down, None)?;
        self.combine(gpu, layout, part)
    }

    /// Makes the lists of pairs and of tiles of `tile_rows` pairs.
    fn choose(
        &self,
        gpu: &Gpu,
        layout: &Layout,
        part: &Part<'_>,
        (tile_rows, max_tiles): (usize, usize),
    ) -> BackendResult<()> {
        let MixExperts { products, mixture, header, .. } = *part.call;
        let (rows, num_experts) = (part.rows as u32, mixture.num_experts as u32);
        let route_params = RouteParams {
            header,
            products: products.row(part.first_row),
            experts: layout.experts,
            weights: layout.weights,
            rows,
            num_experts,
            num_chosen: mixture.num_chosen as u32,
            is_sigmoid: u32::from(mixture.scoring == RouterScoring::Sigmoid),
            is_normalized: u32::from(mixture.weighting == ExpertWeighting::Normalized),
            scale: mixture.scale,
        };
        let order_params = OrderParams {
            header,
            experts: layout.experts,
            weights: layout.weights,
            places: layout.places,
            pair_rows: layout.pair_rows,
            pair_weights: layout.pair_weights,
            tiles: layout.tiles,
            rows,
            num_experts,
            num_chosen: mixture.num_chosen as u32,
            tile_rows: tile_rows as u32,
            max_tiles: max_tiles as u32,
            reserved: 0,
        };
        let num_pairs = part.rows * mixture.num_chosen;
        let plan_bytes = 4 * (mixture.num_experts * (1 + part.rows) + 2 * num_pairs);
        if part.rows <= MAX_PLAN_ROWS && plan_bytes <= MAX_SHARED_BYTES {
            let threads = 32 * part.rows.max(4) as u32;
            let plan =
                Launch { shared_bytes: plan_bytes as u32, ..Launch::overlapping(num_experts, threads) };
            let params = PlanParams { route: route_params, order: order_params };
            return gpu.launch(OPERATION, &self.plan, plan, &params);
        }
        let route = Launch {
            shared_bytes: ROUTE_ROWS as u32 * 4 * num_experts,
            ..Launch::overlapping(part.rows.div_ceil(ROUTE_ROWS) as u32, 32 * ROUTE_ROWS as u32)
        };
        gpu.launch(OPERATION, &self.route, route, &route_params)?;
        let threads = part.rows.next_multiple_of(32).clamp(128, 1024) as u32;
        let order = Launch { shared_bytes: 4 * num_experts, ..Launch::overlapping(num_experts, threads) };
        gpu.launch(OPERATION, &self.order, order, &order_params)
    }

    fn combine(&self, gpu: &Gpu, layout: &Layout, part: &Part<'_>) -> BackendResult<()> {
        let MixExperts { mixture, ref out, header, .. } = *part.call;
        let shared = mixture.shared.as_ref();
        let gates = shared.and_then(|shared| shared.gate);
        let vectors = (out.columns() / VECTOR_ELEMENTS) as u32;
        let params = CombineParams {
            header,
            places: layout.places,
            results: layout.results,
            shared_values: shared.map_or(0, |shared| shared.values.row(part.first_row)),
            shared_gates: gates.map_or(0, |gates| gates.row(part.first_row)),
            out: out.row(part.first_row),
            rows: part.rows as u32,
            num_chosen: mixture.num_chosen as u32,
            vectors,
            reserved: 0,
        };
        let grid = [vectors.div_ceil(COMBINE_THREADS), part.rows.min(MAX_GRID_ROWS) as u32, 1];
        let launch = Launch { grid, threads: COMBINE_THREADS, shared_bytes: 0, overlaps: true };
        gpu.launch(OPERATION, self.combine.get(out.dtype()), launch, &params)
    }
}

/// Rows of a call that pass together.
struct Part<'a> {
    first_row: usize,
    rows: usize,
    call: &'a MixExperts<'a>,
}

/// Checks shapes and types of a call, and that they are within what was reserved.
fn check_call(check: Checker, limits: &ExpertLimits, call: &MixExperts<'_>) -> BackendResult<()> {
    let MixExperts { input, products, mixture, ref out, rows, .. } = *call;
    let Mixture { num_experts, num_chosen, .. } = *mixture;
    let (dtype, hidden, width) = (input.dtype(), input.columns(), mixture.down.columns());
    let is_reserved = (1..=limits.num_chosen).contains(&num_chosen)
        && (num_chosen..=limits.num_experts).contains(&num_experts)
        && hidden <= limits.hidden
        && width <= limits.width;
    check.require(is_reserved, || {
        format!("{num_chosen} of {num_experts} experts of {hidden} x {width}; {limits:?} were reserved")
    })?;
    check.vectors("input", input)?;
    check.vectors("down", mixture.down)?;
    to_u32(check.operation, rows)?;
    let up_rows = num_experts * mixture.gating.input_width(width);
    check.tensor("input", input, dtype, rows, hidden)?;
    check.tensor("products", products, DType::F32, rows, num_experts)?;
    check.tensor("up", mixture.up, dtype, up_rows, hidden)?;
    check.tensor("down", mixture.down, dtype, num_experts * hidden, width)?;
    check.tensor("out", out, dtype, rows, hidden)?;
    let Some(shared) = &mixture.shared else { return Ok(()) };
    check.tensor("shared values", shared.values, dtype, rows, hidden)?;
    shared.gate.map_or(Ok(()), |gate| check.tensor("shared gate", gate, DType::F32, rows, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXTRAL: ExpertLimits =
        ExpertLimits { max_tokens: 8192, num_experts: 8, num_chosen: 2, hidden: 4096, width: 14_336 };

    #[test]
    fn choices_that_the_kernels_do_not_take_are_told_before_anything_is_loaded() {
        assert!(supports(8, 2) && supports(4096, 32));
        assert!(!supports(64, 33) && !supports(4097, 2));
    }

    #[test]
    fn parts_bound_the_workspace() {
        let layout = Layout::new(&MIXTRAL);
        assert!((4096..8192).contains(&layout.rows) && layout.end <= PART_BYTES + 8 * 256);
        let decodes = ExpertLimits { max_tokens: 64, ..MIXTRAL };
        assert_eq!(Layout::new(&decodes).rows, 64);
        assert!(device_bytes(&decodes) < 64 * 2 * 2 * (4096 + 14_336) + (64 << 10));
        // A row that is larger than a part still passes.
        let wide = ExpertLimits { width: 1 << 30, ..MIXTRAL };
        assert_eq!(Layout::new(&wide).rows, 1);
    }

    #[test]
    fn lists_and_buffers_do_not_overlap() {
        let limits = ExpertLimits { max_tokens: 33, num_experts: 60, num_chosen: 4, hidden: 40, width: 24 };
        let layout = Layout::new(&limits).at(4096);
        let pairs = 33 * 4;
        let places = [
            (layout.experts, 4),
            (layout.weights, 4),
            (layout.places, 4),
            (layout.pair_rows, 4),
            (layout.pair_weights, 4),
            (layout.tiles, 32),
            (layout.activated, 48),
            (layout.results, 80),
            (layout.end, 0),
        ];
        assert_eq!(layout.experts, 4096);
        for pair in places.windows(2) {
            assert!(
                pair[0].0 + pairs * pair[0].1 <= pair[1].0 && pair[1].0.is_multiple_of(256),
                "{places:?}"
            );
        }
    }
}
