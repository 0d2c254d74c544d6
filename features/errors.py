"""Every error the product raises on purpose. A message names the value, the limit and the place.

FalconetError
├── RejectedError    a bad message: goes to the dead-letter topic with its reason, the stream goes on
├── UsageError       a wrong setting, option or argument: exit code 2
├── InputError       a file that is missing, damaged or not what it says it is: exit code 1
│   ├── ArtifactError    a model artefact
│   ├── ScreeningError   a list of addresses
│   └── StateError       a saved account state
├── ReorgError       a reorganisation that the account state cannot follow: exit code 1
├── BrokerError      a bad world: Kafka refuses us; exit code 1
│   ├── OutageError      it may pass: retried within a budget
│   └── FencedError      our place in the group or the transaction went to another
└── NodeError        a bad world: a chain's node that cannot be used; exit code 1
    └── NodeOutageError  it may pass: another node is asked, or the same again, within a budget
"""

from typing import Literal

Reason = Literal[
    "not_utf8",
    "not_json",
    "too_deep",
    "too_large",
    "wrong_type",
    "missing_field",
    "malformed_address",
    "malformed_hash",
    "negative_value",
    "value_over_256_bit",
    "timestamp_out_of_range",
    "unsupported_type",
]
"""Why a message was rejected: the closed set that labels `falconet_dlq_total` and the dead-letter header."""

Fault = Literal[
    "unreachable",
    "timeout",
    "rate_limited",
    "refused",
    "malformed",
    "pruned",
    "wrong_chain",
    "missing_block",
    "wrong_block",
    "foreign_receipts",
    "parent_mismatch",
    "head_behind",
    "deep_reorg",
]
"""What is wrong with a node: the closed set that labels `falconet_rpc_errors_total`."""


class FalconetError(Exception):
    """Any error raised on purpose."""


class RejectedError(FalconetError):
    """A message that cannot be a transaction."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class UsageError(FalconetError):
    """A setting, option or argument that cannot be used."""


class InputError(FalconetError):
    """A file that cannot be read as what it should be."""


class ArtifactError(InputError):
    """A model artefact that is damaged, foreign or of another feature schema."""


class ScreeningError(InputError):
    """A list of addresses that cannot be read."""


class StateError(InputError):
    """A saved account state that is damaged or belongs to another schema or topic."""


class ReorgError(FalconetError):
    """A block was orphaned that the account state cannot be taken back by."""


class BrokerError(FalconetError):
    """Kafka is out of reach, refuses us, or has given our place to another."""


class OutageError(BrokerError):
    """Kafka did not do what was asked, and may do it later."""


class FencedError(BrokerError):
    """Kafka has given our place to another process."""


class NodeError(FalconetError):
    """A chain's node cannot be used, for the fault given."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.detail = detail


class NodeOutageError(NodeError):
    """A node did not answer as it should, and it or another may do so later."""
