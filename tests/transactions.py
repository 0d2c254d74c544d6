"""Transactions made by hand."""

from features.transaction import Transaction


def transaction(
    sender: str,
    recipient: str | None,
    value: int,
    time: int,
    *,
    is_token: bool = False,
    status: int | None = None,
    data: str | None = None,
) -> Transaction:
    """Return a transaction of which only what the features read matters."""
    return Transaction(
        type="token_transfer" if is_token else "transaction",
        hash="0x" + "00" * 32,
        log_index=0 if is_token else None,
        chain_id=1,
        block_number=1,
        block_hash=None,
        block_timestamp=time,
        transaction_index=None,
        from_address=sender,
        to_address=recipient,
        value=value,
        input=None if is_token else data,
        receipt_status=None if is_token else status,
    )
