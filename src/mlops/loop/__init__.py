"""The loop: a file a verb, the only place that joins the phases."""
