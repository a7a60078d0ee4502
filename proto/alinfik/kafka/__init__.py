"""What server and client both need of kafka-python. Loads nothing by itself."""
