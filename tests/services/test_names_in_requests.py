"""Every query parameter that is a text: what becomes of a value that nothing has."""

from tests.services.test_requests import ROUTES, kinds, parameters

# refused: a name that no host, service or stream has is refused by name (the tests that prove it are named);
# words: refused unless it is one of the words that the OpenAPI document or the refusal names;
# free: any value can be; what nothing has finds nothing.
TEXTS = {
    ("enrich", "/api/v1/flows", "filter"): "refused: contract/test_facts.py, domain/test_search.py",
    ("enrich", "/api/v1/events", "filter"): "refused: contract/test_facts.py, domain/test_search.py",
    ("enrich", "/api/v1/packages", "host"): "refused: contract/test_facts.py",
    ("enrich", "/api/v1/packages", "name"): "free: a package that nobody has is an answer",
    ("enrich", "/api/v1/packages", "type"): "words: contract/test_facts.py",
    ("enrich", "/api/v1/packages/changes", "host"): "refused: contract/test_facts.py",
    ("ingest", "/api/v1/dead", "stream"): "words: services/test_ingest.py",
    ("ingest", "/api/v1/events", "format"): "words: services/test_ingest.py",
    ("orchestrator", "/seg/maps", "target_host"): "refused: services/test_orchestrator.py",
    ("orchestrator", "/seg/maps/{service_id}", "target_host"): "refused: services/test_orchestrator.py",
    ("orchestrator", "/seg/maps/{service_id}/why", "host"): "refused: services/test_orchestrator.py",
    ("orchestrator", "/seg/maps/{service_id}/why", "peer"): "words: an address",
    ("orchestrator", "/seg/maps/{service_id}/why", "proto"): "words: a protocol",
    ("orchestrator", "/seg/maps/{service_id}/why", "direction"): "words: egress, ingress",
}
PAGES = {"cursor"}


def test_of_every_text_in_a_query_it_is_decided_what_an_unknown_value_is():
    found = {
        (route[0], route[2], name)
        for route in ROUTES
        for name, schema in parameters(route).items()
        if not kinds(schema) & {"integer", "boolean", "date-time"} and name not in PAGES
    }
    assert found == set(TEXTS)
