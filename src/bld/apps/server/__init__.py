"""`bld serve`: edits over HTTP, as the OpenAI images API has them."""
