"""Programs that are timed as whole processes. Each prints one JSON object, its report, as its last line."""
