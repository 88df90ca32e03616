"""The contract as data: which rules a KV connector has to keep, and where each comes from."""

from kvconform.rules.loader import CatalogueError, catalogue_schema, load_catalogue, read_catalogue
from kvconform.rules.model import (
    CAPABILITIES,
    CHAPTERS,
    LEVELS,
    NO_TEST,
    Catalogue,
    Chapter,
    Evidence,
    Level,
    Rule,
    UnknownRuleError,
    rule_section,
)

__all__ = [
    "CAPABILITIES",
    "CHAPTERS",
    "LEVELS",
    "NO_TEST",
    "Catalogue",
    "CatalogueError",
    "Chapter",
    "Evidence",
    "Level",
    "Rule",
    "UnknownRuleError",
    "catalogue_schema",
    "load_catalogue",
    "read_catalogue",
    "rule_section",
]
