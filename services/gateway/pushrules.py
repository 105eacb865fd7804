"""Push rules: the defaults with what each user changed.

Spec: C-S API §Push Rules, "Push Rules: API".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from starlette.responses import Response

from matrixcore import push_rules as rules_of
from matrixcore.identifiers import UserId
from matrixcore.push_rules import (
    NO_USER_RULES,
    InvalidPushRule,
    PushRule,
    PushRuleNotFound,
    RelatedRuleNotFound,
    RuleKind,
    UserPushRules,
    find_rule,
    from_stored_form,
    merged_ruleset,
    parse_kind,
    rule_json,
    ruleset_json,
    stored_form,
)
from services.gateway.dependencies import AccountsDep, FanoutDep
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from tessera.fanout import Fanout
from tessera.http.errors import BadJson, InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_reply
from tessera.storage import push_rules, user_log
from tessera.storage.database import Database, Transaction

router = client_router()


@router.get("/pushrules/")
async def get_push_rules(requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """All rules of the user. Spec: GET /pushrules/."""
    return json_reply({"global": await list_rules(accounts, requester.user_id)})


@router.get("/pushrules/global/")
async def get_push_rules_global(requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """The one ruleset there is. Spec: GET /pushrules/global/."""
    return json_reply(await list_rules(accounts, requester.user_id))


@router.get("/pushrules/global/{kind}/{rule_id}")
async def get_push_rule(kind: str, rule_id: str, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """One rule."""
    rule = await require_rule(accounts, requester.user_id, kind, rule_id)
    return json_reply(rule_json(RuleKind(kind), rule))


@router.get("/pushrules/global/{kind}/{rule_id}/enabled")
async def is_push_rule_enabled(kind: str, rule_id: str, requester: CurrentRequester, accounts: AccountsDep) -> Response:
    """Whether a rule is enabled."""
    rule = await require_rule(accounts, requester.user_id, kind, rule_id)
    return json_reply({"enabled": rule.enabled})


@router.get("/pushrules/global/{kind}/{rule_id}/actions")
async def get_push_rule_actions(
    kind: str, rule_id: str, requester: CurrentRequester, accounts: AccountsDep
) -> Response:
    """What a rule does."""
    rule = await require_rule(accounts, requester.user_id, kind, rule_id)
    return json_reply({"actions": list(rule.actions)})


@router.put("/pushrules/global/{kind}/{rule_id}")
async def set_push_rule(
    kind: str,
    rule_id: str,
    body: JsonObject,
    requester: CurrentRequester,
    accounts: AccountsDep,
    fanout: FanoutDep,
    before: str | None = None,
    after: str | None = None,
) -> Response:
    """Add or replace a rule of the user's own."""
    await change_rules(
        accounts,
        fanout,
        requester.user_id,
        lambda rules: rules_of.put_rule(rules, parse_kind(kind), rule_id, body, before=before, after=after),
    )
    return json_reply({})


@router.delete("/pushrules/global/{kind}/{rule_id}")
async def delete_push_rule(
    kind: str, rule_id: str, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Delete a rule of the user's own."""
    await change_rules(
        accounts, fanout, requester.user_id, lambda rules: rules_of.delete_rule(rules, parse_kind(kind), rule_id)
    )
    return json_reply({})


@router.put("/pushrules/global/{kind}/{rule_id}/enabled")
async def set_push_rule_enabled(
    kind: str, rule_id: str, body: JsonObject, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Switch any rule on or off."""
    enabled = body.get("enabled")
    if not isinstance(enabled, bool):
        raise BadJson("enabled must be a boolean")
    await change_rules(
        accounts,
        fanout,
        requester.user_id,
        lambda rules: rules_of.set_enabled(rules, parse_kind(kind), rule_id, enabled),
    )
    return json_reply({})


@router.put("/pushrules/global/{kind}/{rule_id}/actions")
async def set_push_rule_actions(
    kind: str, rule_id: str, body: JsonObject, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Replace the actions of any rule."""
    await change_rules(
        accounts, fanout, requester.user_id, lambda rules: rules_of.set_actions(rules, parse_kind(kind), rule_id, body)
    )
    return json_reply({})


async def list_rules(accounts: Database, user_id: UserId) -> dict[str, Any]:
    """The user's complete ruleset, by kind."""
    async with accounts.reading() as tx:
        rules = await load_rules(tx, user_id)
    return ruleset_json(merged_ruleset(user_id, rules))


async def load_rules(tx: Transaction, user_id: UserId) -> UserPushRules:
    """What the user changed of the defaults."""
    return _parse(await push_rules.find_rules(tx, user_id))


async def require_rule(accounts: Database, user_id: UserId, kind: str, rule_id: str) -> PushRule:
    """One rule of the user.

    Raises:
        InvalidParam: there is no such kind.
        NotFound: there is no such rule.
    """
    with _refusals():
        parsed = parse_kind(kind)
    async with accounts.reading() as tx:
        rules = await load_rules(tx, user_id)
    rule = find_rule(merged_ruleset(user_id, rules), parsed, rule_id)
    if rule is None:
        raise NotFound("The push rule was not found")
    return rule


async def change_rules(
    accounts: Database, fanout: Fanout, user_id: UserId, change: Callable[[UserPushRules], UserPushRules]
) -> None:
    """Apply one change to the user's rules and tell the user's clients; nothing happens if it changes nothing.

    Raises:
        InvalidParam, NotFound, MatrixError: the change does not fit.
    """
    async with accounts.transaction() as tx:
        rules = _parse(await push_rules.lock_rules(tx, user_id))
        with _refusals():
            changed = change(rules)
        if changed == rules:
            return
        heads = await push_rules.set_rules(tx, user_id, orjson.dumps(stored_form(changed)))
    await fanout.publish_user_wakes(user_log.wakes_of(heads))


def _parse(stored: bytes | None) -> UserPushRules:
    return NO_USER_RULES if stored is None else from_stored_form(orjson.loads(stored))


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn matrixcore's refusals into the API's errors."""
    try:
        yield
    except InvalidPushRule as error:
        raise InvalidParam(str(error)) from error
    except RelatedRuleNotFound as error:
        raise MatrixError(str(error), errcode="M_UNKNOWN", status=400) from error
    except PushRuleNotFound as error:
        raise NotFound("The push rule was not found") from error
