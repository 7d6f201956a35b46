"""`bld studio`: editing in the browser. Only `command` is light: the rest needs the extra [studio]."""
