"""Windows by the hundred, spread over devices."""
