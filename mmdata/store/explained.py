"""Why each sample is not in, in a sentence: the catalog's view `explained`, out of its views `base` and `fates`."""

from __future__ import annotations

from typing import Final

# Of `(clip.image_caption.score >= 0.31): top 0.3 of 1200`: what was compared, how, with what, and what stands behind.
_COMPARED: Final = r"^\((.+) (>=|<=|>|<) ([^ ()]+)\)(: .*)?$"
_NUMBER: Final = "format('{{:.6g}}', {0})"

EXPLAINED: Final = rf"""
WITH told AS (
    SELECT b.sample_id, b.source, b.key, b.parent_id, f.fate, f.step, f.rule, f.value, f.threshold, f.detail,
        {_NUMBER.format("f.value")} AS shown, {_NUMBER.format("f.threshold")} AS bound,
        CASE WHEN f.step = 'rules' THEN regexp_extract(f.detail, '^(\(.*\))(: .*)?$', 1) END AS expression,
        CASE WHEN f.step = 'rules' AND f.value IS NOT NULL THEN
            regexp_extract(f.detail, '{_COMPARED}', ['one', 'sign', 'other', 'more']) END AS c,
        CASE WHEN f.fate = 'duplicate' THEN f.detail END AS best_id,
        CASE WHEN best.source = b.source THEN best.key ELSE coalesce(best.key || ' of ' || best.source, f.detail) END
            AS best
    FROM fates f JOIN base b USING (sample_id)
    LEFT JOIN base best ON f.fate = 'duplicate' AND best.sample_id = f.detail WHERE f.fate <> 'kept'),
own AS (
    SELECT * EXCLUDE (c, shown, bound, best), CASE
        WHEN fate = 'failed' THEN step || ': ' || rule || coalesce(': ' || detail, '')
        WHEN fate = 'duplicate' THEN 'a duplicate of ' || best || ' by ' || rule
            || coalesce(': ' || shown || ' apart, at most ' || bound, '')
        WHEN rule = 'parent_not_kept' THEN 'its parent was not kept (' || detail || ')'
        WHEN rule = 'partner_not_kept' THEN 'it is mixed with a sample that was not kept (' || detail || ')'
        WHEN rule = 'mixes_splits' THEN 'it is mixed of samples of two splits: ' || detail
        WHEN rule = 'replaced_by_children' THEN 'its children stand for it: ' || detail
        WHEN rule = 'augmented_only_in' THEN 'it is a child, and there are none in the split ' || detail
        WHEN rule = 'max_match_loss' THEN
            step || ': its match is ' || shown || ' below its parent''s, at most ' || bound
        WHEN TRY_CAST(c.one AS DOUBLE) IS NOT NULL THEN rule || ': ' || c.other || ' was ' || shown || ', must be '
            || CASE c.sign WHEN '>=' THEN '<=' WHEN '<=' THEN '>=' WHEN '>' THEN '<' ELSE '>' END || ' ' || c.one
        WHEN c.sign <> '' THEN rule || ': ' || c.one || ' was ' || shown || ', must be ' || c.sign || ' ' || c.other
            || c.more
        WHEN expression <> '' THEN rule || ': ' || detail || ' is not true'
        WHEN step IN ('quota', 'mix') AND value IS NOT NULL THEN
            step || ': place ' || shown || ' of its kind, ' || bound || ' stay' || coalesce(' (' || detail || ')', '')
        WHEN step = 'terms' AND value IS NOT NULL THEN
            'terms: its draw was ' || shown || ', must be < ' || bound || coalesce(' (' || detail || ')', '')
        WHEN value IS NOT NULL THEN step || ' by ' || rule || ': ' || shown || coalesce(', at most ' || bound, '')
            || coalesce(' (' || detail || ')', '')
        ELSE step || ': ' || rule || coalesce(': ' || detail, '') END AS sentence
    FROM told)
SELECT own.sample_id, own.source, own.key, own.fate, own.step, own.rule, own.value, own.threshold,
    nullif(own.expression, '') AS expression,
    own.sentence || CASE WHEN own.rule = 'parent_not_kept' THEN coalesce(': ' || other.sentence, '')
        WHEN own.fate = 'duplicate' THEN coalesce(', which is out: ' || other.sentence, '') ELSE '' END AS sentence
FROM own LEFT JOIN own other
    ON other.sample_id = CASE WHEN own.rule = 'parent_not_kept' THEN own.parent_id ELSE own.best_id END
"""
