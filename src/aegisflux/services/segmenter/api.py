"""The segmenter over HTTP: long work answers 202 with an operation, which says where its answer lies."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from litestar import Litestar, MediaType, Request, delete, get, post
from litestar.params import Parameter
from msgspec import Struct

from aegisflux.domain.errors import Unavailable
from aegisflux.domain.manifest import Digest
from aegisflux.domain.policy_compile import Inventory
from aegisflux.runtime import pages
from aegisflux.runtime.access import needs, who
from aegisflux.runtime.beside import beside
from aegisflux.services.segmenter.app import Segmenter
from aegisflux.services.segmenter.operations import Operation
from aegisflux.services.segmenter.plans import KeptPlan, PlanAsked
from aegisflux.services.segmenter.proposals import Asked, Kept
from aegisflux.wire import policyfile

Handler = Request[Any, Any, Any]
SERVICE = "segmenter"
MAX_ASKED = 2 << 20  # two lists of 10,000 names
MAX_PLANNED = 4 * policyfile.MAX_BYTES  # in JSON a line break and a quotation mark of a policy are longer
Number = Annotated[int, Parameter(ge=1, le=2**62)]
Limit = Annotated[int, Parameter(ge=1, le=1000, description="rows a page")]
Before = Annotated[int, Parameter(ge=1, le=2**62, description="only those below this number")]
OperationId = Annotated[str, Parameter(pattern=r"^[0-9a-f]{16}$(?!\n)")]


class Approval(Struct, frozen=True, forbid_unknown_fields=True):
    """`digest` of the plan that was looked at: of another one there is no approval. `accept_blocked`: what it
    would have cut is meant to be cut.
    """

    digest: Digest
    accept_blocked: bool = False


class Summaries(Struct, frozen=True):
    """Proposals or plans in short, newest first; `next_cursor` is the `before` of the next page."""

    items: list[dict[str, Any]]
    next_cursor: int | None


def segmenter_of(request: Handler) -> Segmenter:
    """The service behind the application."""
    found: Segmenter = request.app.state[SERVICE]
    return found


@post("/segment/propose", status_code=202, guards=[needs("operator")], request_max_body_size=MAX_ASKED)
async def propose(data: Asked, request: Handler) -> Operation:
    """Learn from the flows of a window: a proposal with rules and their evidence. Answers with an operation;
    its `result` is where the proposal lies.
    """
    segmenter, asker = segmenter_of(request), who(request)
    asked = await segmenter.proposals.explicit(segmenter.proposals.settled(data))

    async def work(told: Any) -> str:
        return f"/segment/proposals/{await segmenter.proposals.make(asked, asker, told)}"

    return segmenter.operations.begin("propose", work, asker.principal.key)


@get("/segment/operations/{operation:str}", guards=[needs("viewer")])
async def operation(operation: OperationId, request: Handler) -> Operation:
    """How far an operation is, and what came of it."""
    return segmenter_of(request).operations.one(operation)


@delete("/segment/operations/{operation:str}", status_code=200, guards=[needs("operator")])
async def cancel(operation: OperationId, request: Handler) -> Operation:
    """End an operation that runs; nothing of it is kept."""
    return await segmenter_of(request).cancel(operation, who(request))


@get("/segment/proposals", guards=[needs("viewer")])
async def proposals(request: Handler, limit: Limit = 100, before: Before = 2**62) -> Summaries:
    """Proposals in short, newest first."""
    return _summaries(await segmenter_of(request).proposals.all(before, limit), limit)


@get("/segment/proposals/{number:int}", guards=[needs("viewer")])
async def proposal(number: Number, request: Handler) -> Kept:
    """A proposal: groups, rules with their evidence, what is held back and why, and what to look at first."""
    return await segmenter_of(request).proposals.one(number)


@get("/segment/proposals/{number:int}/policy", guards=[needs("viewer")], media_type=MediaType.TEXT)
async def policy(number: Number, request: Handler) -> str:
    """A proposal as a policy file, YAML with what each rule rests on as a comment above it."""
    found = await segmenter_of(request).proposals.policy(number)
    return await beside(policyfile.write, found)


@post("/segment/plan", status_code=202, guards=[needs("operator")], request_max_body_size=MAX_PLANNED)
async def plan(data: PlanAsked, request: Handler) -> Operation:
    """What a proposal or a policy would change, on whom first, what of the recorded flows it would have cut,
    and who has to approve it. Changes nothing. Answers with an operation, whose `result` is where it lies.
    """
    segmenter, asker = segmenter_of(request), who(request)
    asked, policy, window = await segmenter.plans.settled(data)

    async def work(told: Any) -> str:
        return f"/segment/plans/{await segmenter.plans.make(asked, policy, window, asker, told)}"

    return segmenter.operations.begin("plan", work, asker.principal.key)


@post("/segment/proposals/{number:int}/recompute", status_code=202, guards=[needs("operator")])
async def recompute_proposal(number: Number, request: Handler) -> Operation:
    """Compute a proposal once more from the flows it rests on. The operation fails with what is another one
    now, or gone.
    """
    again = segmenter_of(request).again
    await again.check("proposal", number)
    return _again(request, f"/segment/proposals/{number}", number, again.proposal)


@post("/segment/plans/{number:int}/recompute", status_code=202, guards=[needs("operator")])
async def recompute_plan(number: Number, request: Handler) -> Operation:
    """Compute a plan once more from its policy, its flows, and the inventory and snapshots in force of then.
    The operation fails with what is another one now, or gone.
    """
    again = segmenter_of(request).again
    await again.check("plan", number)
    return _again(request, f"/segment/plans/{number}", number, again.plan)


def _again(request: Handler, path: str, number: int, compute: Callable[..., Awaitable[None]]) -> Operation:
    async def work(told: Any) -> str:
        await compute(number, told)
        return path

    return segmenter_of(request).operations.begin("recompute", work, who(request).principal.key)


@get("/segment/plans", guards=[needs("viewer")])
async def plans(request: Handler, limit: Limit = 100, before: Before = 2**62) -> Summaries:
    """Plans in short, newest first."""
    return _summaries(await segmenter_of(request).plans.all(before, limit), limit)


@get("/segment/plans/{number:int}", guards=[needs("viewer")])
async def one_plan(number: Number, request: Handler) -> KeptPlan:
    """A plan: snapshots, changes with witnesses, the replay, canary hosts, guardrails, and whether it is
    stale.
    """
    return await segmenter_of(request).plans.one(number)


@post("/segment/plans/{number:int}/approve", status_code=200, guards=[needs("approver")])
async def approve(number: Number, data: Approval, request: Handler) -> KeptPlan:
    """Approve a plan by its digest. Its author may not, below an admin; nor may one that has changed. With
    `accept_blocked` what its replay would have cut is meant to be cut, and fails no stage of the rollout.
    """
    found = segmenter_of(request).plans
    await found.approve(number, data.digest, data.accept_blocked, who(request))
    return await found.one(number)


@get("/segment/inventory", guards=[needs("viewer")])
async def inventory(request: Handler) -> Inventory:
    """What names mean now: hosts with labels and addresses, services with the hosts that run them."""
    return await segmenter_of(request).plans.inventory()


@get("/segment/in-force", guards=[needs("viewer")])
async def in_force(request: Handler) -> dict[str, Any]:
    """What is in force of each service, as a snapshot: the promoted version, else the newest on some host."""
    found = await segmenter_of(request).plans.in_force()
    return {name: msgspec.to_builtins(snapshot) for name, snapshot in found.items()}


def _summaries(items: list[Any], limit: int) -> Summaries:
    return Summaries(items, items[-1]["id"] if len(items) == limit else None)


HANDLERS = (
    propose, operation, cancel, proposals, proposal, policy,
    plan, plans, one_plan, approve, recompute_proposal, recompute_plan, inventory, in_force,
)  # fmt: skip


def application(segmenter: Segmenter | None) -> Litestar:
    """The application; without a service it can only describe itself."""

    async def started() -> str:
        assert segmenter is not None
        if not segmenter.started:
            raise Unavailable("still starting")
        return "started"

    parts = segmenter.parts if segmenter else None
    checks = {"store": parts.store.check, "facts": parts.facts.check, SERVICE: started} if parts else {}
    return pages.application(
        SERVICE,
        "Proposals from recorded flows, and what would come of them.",
        HANDLERS,
        bearers=segmenter.bearers if segmenter else None,
        checks=checks,
        state={SERVICE: segmenter},
    )
