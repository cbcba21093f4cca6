"""Plans for people: one table of all of them, the details of each, and which to choose."""

from rich import box
from rich.console import Console
from rich.table import Table

from big_mm.planning.analytic import Analysis
from big_mm.planning.chips import GIB, Topology
from big_mm.planning.plans import Plan, best

LEGEND = """\
compiled: fits, peak, HBM traffic, collectives, cycles; traced: operations; modelled from these and
the vendor's peaks: times and bounds. Nothing was executed. MFU bound: the model's operations at the
longest of the three times, which no run of that program can beat; at low effort its HBM traffic is
high. Cycles: the compiler's own estimate (default effort of TPUs only), without communication. ICI:
the links between chips; of GPUs NVLink and the network."""
COLUMNS = (
    "fits", "peak GiB", "of", "PFLOP", "model", "HBM GB", "ICI GB", "compute s", "HBM s", "ICI s",
    "MFU bound", "cycles s", "MFU",
)  # fmt: skip


def overview(plans: list[Plan]) -> Table:
    """One line a plan."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("slice", "mesh", "settings"):
        table.add_column(name, no_wrap=True)
    priced = any(plan.dollars_per_million for plan in plans)
    for name in (*COLUMNS, *(["$/1e6"] if priced else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(*_cells(plan, priced))
    return table


def _cells(plan: Plan, priced: bool) -> list[str]:
    sizes = "x".join(str(plan.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
    settings = " ".join(f"{key}={value}" for key, value in plan.settings.items())
    cells = [plan.topology, sizes, settings, "yes" if plan.fits else "NO"]
    if not plan.fits:
        return cells
    cells += [
        f"{plan.peak_hbm_bytes / GIB:.2f}",
        f"{plan.hbm_limit_bytes / GIB:.2f}",
        f"{plan.flops / 1e15:.3f}",
        f"{plan.model_flops / 1e15:.3f}",
        f"{plan.hbm_bytes / 1e9:.0f}",
        f"{plan.collective_bytes / 1e9:.1f}",
        *(f"{plan.seconds[term]:.3f}" for term in ("compute", "hbm", "ici")),
        f"{plan.mfu_bound:.2f}",
        f"{plan.estimated_seconds:.2f}" if plan.estimated_seconds else "-",
        f"{plan.estimated_mfu:.2f}" if plan.estimated_mfu else "-",
    ]
    if priced:
        cells.append(f"{plan.dollars_per_million:.2f}" if plan.dollars_per_million else "-")
    return cells


def details(plan: Plan) -> str:
    """Memory by kind and collectives; or why it does not fit."""
    lines = [plan.label]
    if not plan.fits:
        return "\n".join([*lines, f"  does not fit: {plan.refusal}"])
    for kind, size in plan.memory.items():
        origin = "compiled" if kind in ("program", "temporaries") else "by shape"
        lines.append(f"  memory      {size / GIB:9.3f} GiB  {kind} ({origin})")
    for kind, total in plan.collectives.items():
        lines.append(f"  collective  {total['bytes'] / 1e9:9.3f} GB   {kind}, {total['runs']} runs")
    for cycles, runs, name, place in plan.costliest[:8]:
        lines.append(f"  cycles      {cycles / 1e6:9.1f} M    {name}, {runs} runs: {place[-70:]}")
    return "\n".join(lines)


def advice(plans: list[Plan]) -> str:
    """Which plan to choose, and why: of each kind of chip, unless prices compare them."""
    if not all(plan.dollars_per_million for plan in plans if plan.fits):
        groups = dict.fromkeys(plan.topology for plan in plans)
        parts = ([plan for plan in plans if plan.topology == name] for name in groups)
        return "\n".join(map(_advice, parts))
    return _advice(plans)


def _advice(plans: list[Plan]) -> str:
    chosen = best(plans)
    if chosen is None:
        return (
            f"no plan for {plans[0].topology} fits: take more chips, remat=full, microbatches, or "
            "a larger fsdp axis"
        )
    term = max(chosen.seconds, key=chosen.seconds.__getitem__)
    free = chosen.hbm_limit_bytes - chosen.peak_hbm_bytes
    images = chosen.batch_size / chosen.step_seconds_bound
    estimated = all(plan.estimated_seconds for plan in plans if plan.fits)
    by = "the compiler's cycles" if estimated else "the bound"
    unit = "dollars" if chosen.dollars_per_million else "chip time"
    return (
        f"choose {chosen.label}: the least {unit} for a sample by {by} "
        f"({sum(plan.fits for plan in plans)} of {len(plans)} plans fit). {term} limits it to "
        f"{images:,.0f} samples/s ({chosen.step_seconds_bound:.3f} s a step, MFU at most "
        f"{chosen.mfu_bound:.2f}); {free / GIB:.2f} GiB of HBM stay free."
    )


def analysis(found: Analysis, topology: Topology | None) -> list[Table | str]:
    """The table of modules, and the memory of a chip."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("module", no_wrap=True)
    for name in ("parameters", "forward PFLOP", "saved GB"):
        table.add_column(name, justify="right")
    for row in found.rows:
        table.add_row(
            row.module,
            f"{row.parameters:,}",
            f"{row.flops / 1e15:.3f}",
            f"{row.saved_bytes / 1e9:.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(row.parameters for row in found.rows):,}",
        f"{sum(row.flops for row in found.rows) / 1e15:.3f}",
        f"{sum(row.saved_bytes for row in found.rows) / 1e9:.2f}",
    )
    where = f"each chip of {topology.name}" if topology else "one chip that holds everything"
    lines = [f"memory of {where}, modelled; a compiler adds buffers and padding"]
    lines += [f"  {size / GIB:9.3f} GiB  {kind}" for kind, size in found.memory.items()]
    limit = f" of {topology.chip.hbm / GIB:.2f}" if topology else ""
    return [table, "\n".join([*lines, f"  {found.bytes / GIB:9.3f} GiB{limit} in all"])]


def show(*parts: Table | str) -> None:
    """Prints tables and text, tables as wide as they need to be."""
    console = Console(width=200, highlight=False)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)
