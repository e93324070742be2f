//! Pages, filters by time, and `expand[]`.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::form::Form;
use super::render::View;
use super::shelf::{Kept, Shelf};

const LIMIT_DEFAULT: usize = 10;
const LIMIT_MAX: usize = 100;
/// `a.b.c.d`, beside the `data` of a list.
const EXPAND_DEPTH_MAX: usize = 5;

/// The parameters that every list takes.
pub const PAGING: [&str; 3] = ["limit", "starting_after", "ending_before"];

/// One page of `found`, which is sorted as Stripe lists: the newest first. A cursor may be an object that the filters no longer
/// let through; its place still tells where to go on.
pub fn page<T: Kept>(
    form: &Form,
    url: &str,
    page_max: usize,
    shelf: &Shelf<T>,
    found: Vec<(usize, &T)>,
    render: impl Fn(&T) -> Value,
) -> Result<Value, ApiError> {
    let place = |name: &str| match form.filled(name) {
        Some(id) => shelf.place(id).map(Some).ok_or_else(|| ApiError::no_such(T::NOUN, id, name)),
        None => Ok(None),
    };
    let places: Vec<usize> = found.iter().map(|(place, _)| *place).collect();
    let (range, has_more) = cut(&places, limit(form)?.min(page_max.max(1)), place("starting_after")?, place("ending_before")?)?;
    let data: Vec<Value> = found.iter().skip(range.0).take(range.1 - range.0).map(|(_, object)| render(object)).collect();
    Ok(list(url, &data, has_more))
}

pub fn list(url: &str, data: &[Value], has_more: bool) -> Value {
    json!({"object": "list", "data": data, "has_more": has_more, "url": url})
}

pub fn limit(form: &Form) -> Result<usize, ApiError> {
    let Some(text) = form.filled("limit") else { return Ok(LIMIT_DEFAULT) };
    let limit: usize = text.parse().map_err(|_| ApiError::not_an_integer("limit", text))?;
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("This value must be between 1 and {LIMIT_MAX}.")));
    }
    Ok(limit)
}

/// Which part of `places` (they fall) makes the page, half open, and whether there is more in the direction of travel.
fn cut(places: &[usize], limit: usize, after: Option<usize>, before: Option<usize>) -> Result<((usize, usize), bool), ApiError> {
    match (after, before) {
        (Some(_), Some(_)) => {
            let message = "You can only specify one of these parameters: starting_after, ending_before.";
            Err(ApiError::invalid("ending_before", message))
        }
        (None, Some(cursor)) => {
            let end = places.partition_point(|place| cursor < *place);
            let start = end.saturating_sub(limit);
            Ok(((start, end), 0 < start))
        }
        (after, None) => {
            let start = after.map_or(0, |cursor| places.partition_point(|place| cursor <= *place));
            let end = places.len().min(start + limit);
            Ok(((start, end), end < places.len()))
        }
    }
}

/// `created=5`, or `created[gte]=5&created[lt]=9`.
#[derive(Debug, Default)]
pub struct Times {
    at: Option<i64>,
    after: Option<i64>,
    from: Option<i64>,
    before: Option<i64>,
    until: Option<i64>,
}

impl Times {
    pub fn read(form: &Form, name: &str) -> Result<Self, ApiError> {
        let below = form.below(name);
        below.only(&["gt", "gte", "lt", "lte"])?;
        Ok(Self {
            at: form.integer(name)?,
            after: below.integer("gt")?,
            from: below.integer("gte")?,
            before: below.integer("lt")?,
            until: below.integer("lte")?,
        })
    }

    pub fn contain(&self, at: i64) -> bool {
        self.at.is_none_or(|only| at == only)
            && self.after.is_none_or(|bound| bound < at)
            && self.from.is_none_or(|bound| bound <= at)
            && self.before.is_none_or(|bound| at < bound)
            && self.until.is_none_or(|bound| at <= bound)
    }
}

/// Puts whole objects in the place of ids, wherever `expand[]` points.
pub fn expand(value: &mut Value, form: &Form, view: &View<'_>) -> Result<(), ApiError> {
    for path in form.list("expand") {
        let steps: Vec<&str> = path.split('.').collect();
        if EXPAND_DEPTH_MAX < steps.len() {
            let message = format!("You cannot expand more than 4 levels of a property. Property: {path}");
            return Err(ApiError::invalid("expand", message));
        }
        expand_at(value, &steps, &path, view)?;
    }
    Ok(())
}

fn expand_at(value: &mut Value, steps: &[&str], path: &str, view: &View<'_>) -> Result<(), ApiError> {
    if let Some(elements) = value.as_array_mut() {
        return elements.iter_mut().try_for_each(|element| expand_at(element, steps, path, view));
    }
    let fault = || ApiError::invalid("expand", format!("This property cannot be expanded ({path})."));
    // What is null has nothing below it.
    if value.is_null() {
        return Ok(());
    }
    let Some((step, rest)) = steps.split_first() else {
        if let Some(id) = value.as_str() {
            *value = view.any(id).ok_or_else(fault)?;
        }
        return Ok(());
    };
    // On the way, what is still an id is expanded too.
    if let Some(id) = value.as_str() {
        *value = view.any(id).ok_or_else(fault)?;
    }
    let inner = value.as_object_mut().and_then(|object| object.get_mut(*step)).ok_or_else(fault)?;
    expand_at(inner, rest, path, view)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten objects, the newest first.
    const PLACES: [usize; 10] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

    #[test]
    fn pages_are_cut() {
        let check = |limit, after, before, expected: &[usize], more: bool| {
            let cut = cut(&PLACES, limit, after, before).unwrap_or_else(|error| panic!("{error}"));
            let ((start, end), has_more) = cut;
            assert_eq!((&PLACES[start..end], has_more), (expected, more), "{limit} {after:?} {before:?}");
        };
        check(3, None, None, &[9, 8, 7], true);
        check(10, None, None, &PLACES, false);
        check(3, Some(7), None, &[6, 5, 4], true);
        check(3, Some(3), None, &[2, 1, 0], false);
        check(3, Some(0), None, &[], false);
        check(1, Some(1), None, &[0], false);
        // Backwards: those just before the cursor, still the newest first.
        check(3, None, Some(4), &[7, 6, 5], true);
        check(3, None, Some(7), &[9, 8], false);
        check(3, None, Some(9), &[], false);
        assert!(cut(&PLACES, 1, Some(1), Some(1)).is_err());
    }

    #[test]
    fn walking_page_by_page_meets_each_object_once() {
        for limit in 1..=11 {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let ((start, end), more) = cut(&PLACES, limit, after, None).unwrap_or_else(|error| panic!("{error}"));
                seen.extend_from_slice(&PLACES[start..end]);
                after = seen.last().copied();
                if !more {
                    break;
                }
            }
            assert_eq!(seen, PLACES, "{limit}");
        }
    }

    #[test]
    fn a_cursor_that_is_filtered_out_still_has_its_place() {
        let places = [8, 6, 4, 2];
        assert_eq!(cut(&places, 2, Some(5), None).ok(), Some(((2, 4), false)));
        assert_eq!(cut(&places, 2, None, Some(5)).ok(), Some(((0, 2), false)));
    }

    #[test]
    fn times_are_half_open_or_not_as_they_say() {
        let times = |text: &str| Times::read(&Form::parse(text).unwrap_or_default(), "created").unwrap_or_default();
        assert!(times("").contain(5));
        assert!(times("created=5").contain(5) && !times("created=5").contain(6));
        assert!(times("created[gte]=5").contain(5) && !times("created[gt]=5").contain(5));
        assert!(times("created[lte]=5").contain(5) && !times("created[lt]=5").contain(5));
    }
}
