"""The part of the model's licence that binds users of the service, who must be told of it (its sections 4a and 5)."""

from __future__ import annotations

USE_RESTRICTIONS = """\
Tiny-SD and other models derived from Stable Diffusion 1.x are licensed under the CreativeML Open RAIL-M licence,
dated August 22, 2022: https://huggingface.co/spaces/CompVis/stable-diffusion-license

Whoever uses this service is bound by the use-based restrictions of that licence:

Attachment A
Use Restrictions

You agree not to use the Model or Derivatives of the Model:
- In any way that violates any applicable national, federal, state, local or international law or regulation;
- For the purpose of exploiting, harming or attempting to exploit or harm minors in any way;
- To generate or disseminate verifiably false information and/or content with the purpose of harming others;
- To generate or disseminate personal identifiable information that can be used to harm an individual;
- To defame, disparage or otherwise harass others;
- For fully automated decision making that adversely impacts an individual's legal rights or otherwise creates or
  modifies a binding, enforceable obligation;
- For any use intended to or which has the effect of discriminating against or harming individuals or groups based on
  online or offline social behavior or known or predicted personal or personality characteristics;
- To exploit any of the vulnerabilities of a specific group of persons based on their age, social, physical or mental
  characteristics, in order to materially distort the behavior of a person pertaining to that group in a manner that
  causes or is likely to cause that person or another person physical or psychological harm;
- For any use intended to or which has the effect of discriminating against individuals or groups based on legally
  protected characteristics or categories;
- To provide medical advice and medical results interpretation;
- To generate or disseminate information for the purpose to be used for administration of justice, law enforcement,
  immigration or asylum processes, such as predicting an individual will commit fraud/crime commitment (e.g. by text
  profiling, drawing causal relationships between assertions made in documents, indiscriminate and
  arbitrarily-targeted use).
"""
