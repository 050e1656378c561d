"""`growlm prepare` as steps of datatrove: many machines write the parts of one request, by SLURM, by Ray, or here.

    begin(request)          once, where the job is started: the plan and the tokenizer
    TokenShards(request)    as many tasks as one likes; each writes its share of the parts
    MergeShards(request)    one task after them: the manifest

The parts are those of one machine and do not depend on the number of tasks, so that the folder has the bytes that
`growlm prepare` writes. A task that is killed and started again goes on with the parts that have no record, and `growlm
prepare` itself goes on with what a job has left. All machines must see the output.
"""

from growlm.buckets import local_only
from growlm.data.prepare import (
    Request,
    Work,
    find_rule_of,
    finished,
    job_of,
    planned_rule,
    read_request,
    recorded,
    write_manifest,
    write_plan,
    write_record,
)
from growlm.data.workers import Job, open_tokenizer, write_part
from growlm.errors import InputError, import_library, must_be
from growlm.files import locked, make_folder

PipelineStep = import_library("datatrove.pipeline.base").PipelineStep


def begin(request: Request) -> int:
    """Writes the plan and the tokenizer, or finds those of an equal request.

    Returns:
      The number of parts: more tasks than that have nothing to do.

    Raises:
      InputError: as `growlm.data.prepare.prepare` does.
    """
    local_only(request.output, "the output of a job of several machines")
    work = read_request(request)
    if finished(work) is None:
        rule = find_rule_of(work)
        make_folder(request.output)
        with locked(request.output):
            write_plan(work, rule)
    return len(work.parts)


class TokenShards(PipelineStep):
    """Turns the parts of a request into token shards: of n tasks, the one of rank r has the parts r, r + n, ...

    It is the only step of its pipeline, as the request names what is read; steps of datatrove may be a source of it.
    """

    type, name = "🔢 - TOKENIZER", "growlm token shards"

    def __init__(self, request: Request):
        super().__init__()
        self.request = request

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the shards that have no record yet. Raises InputError, also where the request was not begun."""
        if data is not None:
            raise InputError("TokenShards must be the first step: readers and filters are a source of its request")
        work = read_request(self.request)
        if finished(work):
            return
        job, done = _begun(work), recorded(self.request.output)
        tokenizer = open_tokenizer(job)
        for number in range(rank, len(work.parts), world_size):
            if number not in done:
                with self.track_time("part"):
                    rows = write_part(job, tokenizer, number, work.parts[number], self._count_bytes)
                write_record(self.request.output, number, rows)
                for unit in ("documents", "tokens"):
                    self.stat_update(unit, value=sum(row[unit] for row in rows), unit="part")

    def _count_bytes(self, size: int) -> None:
        self.stat_update("bytes", value=size, unit="MiB")


class MergeShards(PipelineStep):
    """Ends a request whose parts are all written: the manifest, after which the folder is a corpus."""

    type, name = "💽 - WRITER", "growlm manifest"

    def __init__(self, request: Request):
        super().__init__()
        self.request = request

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the manifest. Raises InputError where a part has no shards."""
        if world_size != 1:
            raise must_be("tasks of MergeShards", "1", world_size)
        work = read_request(self.request)
        if finished(work) is None:
            with locked(self.request.output):
                write_manifest(work, _begun(work).rule)


def _begun(work: Work) -> Job:
    rule = planned_rule(work)
    if rule is None:
        raise InputError(f"{work.request.output} must be begun by growlm.data.pipeline.begin, got no plan there")
    return job_of(work, rule)
