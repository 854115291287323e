import logging

# it warns of an optional kernel each time that PEFT or TRL imports it
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
