"""The application: what stands between Kafka and the pipeline, and the commands."""
