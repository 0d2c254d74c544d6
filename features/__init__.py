"""What is known of a transaction and of the past of its addresses, as numbers."""
