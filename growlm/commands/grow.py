"""`growlm grow`: a saved model, grown or shrunk, and written: a run's whole state, or a Hugging Face folder."""

import argparse
import inspect
import sys
from typing import Any

from growlm.commands.kept_text import of_source
from growlm.commands.options import PUSHING, STEP, Keys, check_push, flag, one, pairs, place, push
from growlm.commands.uncollected import uncollected
from growlm.errors import InputError

OPTIONS = {
    "--source": one("DIR", "a run's folder, one of growlm grow, a Hugging Face folder, or hf:ORG/NAME", place),
    "--output": one("DIR", "new folder", place),
    "--operator": one("NAME", "operator or preset (default: direct)"),
    "--factor": one("N", "multiply the layers by N; of a shrink, keep this share of them, such as 0.5", float),
    "--undo": flag("take back the growth that the source is of"),
    "--optimizer_state": one("NAME", "reset, map, map_aged or keep_old"),
    "--step": STEP,
    "--seed": one("N", "seed of fresh values (default: the source's key)", int),
    **PUSHING,
    "--no_verify": flag("write the grown model unchecked"),
    "--dry_run": flag("print what would be done, and write nothing"),
    "--list": flag("print the operators and presets"),
}
KEYS = {
    "--target": "sets a size of the grown model, such as --target.embed=1024",
    "--option": "sets an option of the operator, such as --option.order=interleave",
}


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command and return the exit code."""
    if args.list:
        # Claims need JAX and plans of every preset. Where the tables are loaded they may have rows of one's own.
        loaded = "growlm.growth" in sys.modules
        with uncollected():
            print(_list_growths() if loaded else of_source("growths", _list_growths))
        return 0
    from growlm.training.saved import of_the_newest

    needed = {"--source": args.source} | ({} if args.dry_run else {"--output": args.output})
    if missing := [option for option, value in needed.items() if value is None]:
        raise InputError(f"grow needs {missing[0]}=DIR (see growlm grow --help)")
    return of_the_newest(_grow)(args, pairs("--option", keys), pairs("--target", keys))


def _grow(args: argparse.Namespace, options: dict[str, Any], sizes: dict[str, Any]) -> int:
    from growlm.commands.grow_checkpoint import describe_plan, plan_grow, plan_undone, run_grow

    settings = {"output": args.output, "optimizer_state": args.optimizer_state, "step": args.step}
    if args.undo:
        given = {
            "operator": args.operator,
            "factor": args.factor,
            "seed": args.seed,
            "option": options,
            "target": sizes,
        }
        if extra := [name for name, value in given.items() if value not in (None, {})]:
            raise InputError(f"--undo and --{extra[0]} must not be given both: what is undone is in growth.json")
        plan = plan_undone(args.source, **settings)
    else:
        operator = args.operator or "direct"
        more = {"options": options, "factor": args.factor, "sizes": sizes, "seed": args.seed}
        plan = plan_grow(args.source, operator=operator, **more, **settings)
    if args.dry_run:
        print(describe_plan(plan))
        return 0
    if args.push and not plan.folder:
        raise InputError("--push is of Hugging Face folders: growlm convert --to=huggingface makes one of a run")
    check_push(args)
    verdict = run_grow(
        plan, verified=not args.no_verify, log=lambda text: print(f"growlm: {text}", file=sys.stderr, flush=True)
    )
    print(f"{describe_plan(plan)}\n\n{verdict}\n\nwritten: {args.output}")
    push(args)
    return 0


def _list_growths() -> str:
    """The operators with their options, the lifts, and the table of presets."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a run may hold the accelerator, and claims need none

    from growlm.files import table
    from growlm.growth import LIFTS, OPERATORS, SHRINKS, options_of
    from growlm.growth.presets import table as preset_table

    rows = []
    for name, operator in (OPERATORS | SHRINKS).items():
        rows.append((name, inspect.getdoc(operator).splitlines()[0]))
        rows.append(("", f"options: {', '.join(options_of(name))}"))
    rows += [(name, f"a lift between architectures: {lift.says}") for name, lift in LIFTS.items()]
    return f"{table(rows)}\n\n{preset_table()}"
