"""An example to change: tools that look at a code base.

One module for each tool: `audit_tool`, `metrics_tool`, `mapping_tool` and `churn_tool`. What they find is found by the
other modules, in a process of its own (`analysis`), which may be slow, or crash, without holding up a call.
"""
