"""Print the build info as JSON: python -m neuscale_ops"""

import json

from neuscale_ops import build_info

print(json.dumps(build_info(), indent=2))
